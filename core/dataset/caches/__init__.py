"""Caches on disk: latents, text encoder outputs, masks, control images, hashes."""
