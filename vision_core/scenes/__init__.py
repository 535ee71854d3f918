"""Synthetic scenes with their ground truth."""
