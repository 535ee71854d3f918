"""Synthetic scenes, drawn on the fly, with their ground truth."""
