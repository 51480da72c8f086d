"""Settings of captioners."""
