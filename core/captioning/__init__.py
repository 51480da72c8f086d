"""Captioners (taggers, models that write sentences, names, JSON files, metadata), and edits of many captions."""
