"""`journeyman serve proxy`: any agent program plays over HTTP, and what it played is recorded."""
