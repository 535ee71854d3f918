"""One module for each kind of image source."""
