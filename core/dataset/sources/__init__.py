"""Dataset sources: images from folders, zips and metadata files."""
