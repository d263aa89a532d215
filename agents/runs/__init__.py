"""A run: its config, its folder, training and evaluation from start to end."""
