"""Settings in image files (Atelier's, A1111's, those of other programs), the gallery's index, and writing of images."""
