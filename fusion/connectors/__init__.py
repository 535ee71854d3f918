"""Connectors turn the feature maps of several encoders into the tokens of a language model."""
