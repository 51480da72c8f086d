"""Buckets (training sizes), batches, and the plan of which images each step uses."""
