"""Diffusion arithmetic: noise schedule, timesteps, targets, losses, loss weights, samplers. Pure functions of tensors."""
