"""From folders, zips and metadata to images."""
