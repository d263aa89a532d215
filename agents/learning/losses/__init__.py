"""What is minimised: one class a loss."""
