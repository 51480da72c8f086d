"""From a prompt to images: the callers (`run`, `grids`, `class_images`), and the rooms below them. Imports point from callers down."""
