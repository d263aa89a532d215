"""The one loop that plays episodes, from their start or from inside them."""
