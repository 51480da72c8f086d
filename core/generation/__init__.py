"""From a prompt to images: the entry points (`run`, `grids`, `class_images`) and the packages that they import."""
