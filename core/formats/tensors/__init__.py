"""Tensors in files: headers, reading, writing, pickles."""
