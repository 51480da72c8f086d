"""Hooks that act at the steps of a generation, registered in core/generation/plan/hooks.py."""
