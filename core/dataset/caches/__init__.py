"""What is computed once."""
