"""The trainers: thin subclasses of TRL's, and the only modules that import it."""
