"""From the feature maps of several encoders to the tokens of a language model."""
