"""Creates and updates `.venv`, and starts what runs in it. Standard library only: nothing is installed yet."""
