"""Reads and writes other programs' files: the dataset config of sd-scripts."""
