"""Forms: fields from declarations, presets, and the project that stores their values."""
