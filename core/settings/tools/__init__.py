"""Settings of the tools."""
