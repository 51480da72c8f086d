"""Settings of a generation."""
