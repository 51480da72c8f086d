"""Diffusion arithmetic: schedule, noise, timesteps, targets, loss weights, samplers. Pure functions of tensors."""
