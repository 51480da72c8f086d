"""The loop of sampling, guidance, noise, and images to and from latents. Knows no job and no file."""
