"""Fusing several vision encoders into one language model."""
