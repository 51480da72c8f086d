"""The sampling loop, guidance, noise, and conversion between images and latents. Uses no job and no files."""
