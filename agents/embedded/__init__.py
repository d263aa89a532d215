"""The embedded pair: a small teacher and a smaller student that need no hub and no GPU."""
