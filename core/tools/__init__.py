"""Tools on model files and image folders: a settings model and a function each, registered in core/builtin.py."""
