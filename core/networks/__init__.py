"""Adapters that train beside frozen weights, and the frozen weights' fast form on CPUs."""
