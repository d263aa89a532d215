"""Who plays: how conversations become tokens, and what writes turns."""
