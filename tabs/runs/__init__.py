"""The Runs tab, and two runs compared."""
