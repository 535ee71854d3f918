"""What surrounds the training loop: options, checkpoints, health, figures, cards."""
