"""Hydra configuration; read through `pkg://journeyman.conf`."""
