"""Presets, recipes and levels: jobs as files, and values that come from elsewhere."""
