"""From what was played to gradients: rows, losses, trainers."""
