"""Files on disk: single-file checkpoints, diffusers folders, LoRA files, metadata and hashes. Nothing here imports torch at import."""
