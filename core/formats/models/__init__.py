"""Whole models: found, read and written."""
