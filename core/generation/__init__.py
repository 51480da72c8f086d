"""From a prompt to images: the callers (`run`, `grids`, `class_images`), and the packages below them. Imports point from callers down."""
