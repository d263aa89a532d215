"""Who judges what the student wrote."""
