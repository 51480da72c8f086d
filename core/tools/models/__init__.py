"""Tools on model files of any kind."""
