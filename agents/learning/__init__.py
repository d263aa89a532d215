"""From what was played to gradients: the collector, rows, losses, trainers."""
