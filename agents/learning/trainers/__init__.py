"""The trainers: thin subclasses of TRL's."""
