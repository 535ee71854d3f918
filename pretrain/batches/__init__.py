"""From a source of images to the batches of every step."""

NUM_GLOBAL_CROPS = 2  # of each image
