"""Import and export dataset configs and training settings of other programs."""
