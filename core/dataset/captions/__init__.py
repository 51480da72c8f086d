"""Captions: files, encodings, history, and the pipeline that turns them into training captions."""
