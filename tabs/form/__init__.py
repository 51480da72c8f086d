"""What forms share: fields from declarations, presets, the project that keeps what they hold."""
