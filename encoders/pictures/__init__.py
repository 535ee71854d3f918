"""Pictures of encoders and of numbers."""
