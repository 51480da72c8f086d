"""What must hold before a start."""
