"""The stages that train a fused model."""
