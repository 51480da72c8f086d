"""Captions that come from elsewhere than a model."""
