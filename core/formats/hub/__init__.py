"""Models from elsewhere: the catalog, downloads, uploads."""
