"""Adapters that train on top of frozen weights, and a faster form of frozen weights for CPUs."""
