"""Captioners (taggers, sentence models, file names, JSON files, image metadata), and edits of many captions."""
