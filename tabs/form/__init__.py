"""Forms: fields from the declarations of settings, presets, and the project that stores their values."""
