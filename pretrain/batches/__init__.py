"""From a source of images to the batches of every step."""
