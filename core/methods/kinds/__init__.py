"""Registers the training methods, one file each, for settings, rules, page and memory forecast. Imports no torch."""
