"""What every room stands on: arguments, run folders, checkpoints, randomness, images. Imports no
sibling package."""
