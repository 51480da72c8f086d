"""Optimizer steps: optimizers, learning rate schedules, clipping, and the guard against non-finite values."""
