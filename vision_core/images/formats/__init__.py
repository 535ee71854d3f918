"""One module for each image format."""
