"""The machine check: what works here, how well, and how to fix the rest. The list of items is in items.py."""
