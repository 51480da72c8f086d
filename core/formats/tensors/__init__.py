"""Tensors in files: headers, reading, writing, and pickles read without running them."""
