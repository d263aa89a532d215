"""Models by name, and what is read of their networks."""
