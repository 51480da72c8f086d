"""Create and update `.venv`, and start the page or a command in it. Standard library only: nothing is installed yet."""
