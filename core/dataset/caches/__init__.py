"""Caches: latents, text encoder outputs, masks, control images, hashes."""
