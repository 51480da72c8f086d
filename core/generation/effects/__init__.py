"""Hooks that act during sampling, registered in core/generation/plan/hooks.py."""
