"""The machine check: tests which features work on this machine, measures them, and suggests fixes. items.py lists the items."""
