"""The check of a machine: what works here, how well, and what to do about the rest. The list of items is in items.py."""
