"""transformers' Trainer in the folder of a run."""
