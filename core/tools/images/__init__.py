"""Tools on the images of a folder."""
