"""Tools on model files and image folders: a settings model and a module each, with a row in core/builtin.py."""
