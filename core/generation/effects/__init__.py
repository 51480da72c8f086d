"""What acts at the steps of a generation, registered in core/generation/plan/hooks.py."""
