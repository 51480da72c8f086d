"""Grids of images over settings (X/Y/Z plots)."""
