"""LoRA files: names, metadata, pickled ones."""
