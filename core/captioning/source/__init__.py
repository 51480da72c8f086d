"""Captions from names, JSON files and the metadata of images."""
