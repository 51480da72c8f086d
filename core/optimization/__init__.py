"""How weights are moved: optimizers, learning-rate curves, clipping, and the guard against non-finite numbers."""
