"""Pictures to captions."""
