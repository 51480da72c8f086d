"""Tools on fine-tuning metadata (JSON files of captions and tags)."""
