"""Reads and writes other programs' files: dataset configs of sd-scripts, and training settings of several programs."""
