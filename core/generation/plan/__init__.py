"""Expands a job into one request per image, and resolves its stages, files, problems and memory forecast."""
