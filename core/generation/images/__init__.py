"""Settings in image files: Atelier's, A1111's and those of other programs; the gallery's index; writing images."""
