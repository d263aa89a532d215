"""Episodes that are played in other processes: what goes there, what comes back, who gets what."""
