"""Records of whole results: what pure parts of the program answer to many inputs, compared with JSON in `recorded/`.

A producer is a function that yields (name, data) and is marked with `@producer` (`store.py`); each file with such
functions is recorded in `recorded/<module>.json.xz`. What it answers to must be the same on every
machine and at every time. `python -m tests.facts.write [MODULE ...]` records again and prints what changed, which is what to review.
"""
