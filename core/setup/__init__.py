"""Making and keeping `.venv`, and starting what runs in it. Standard library only: nothing is installed yet."""
