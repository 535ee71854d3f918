"""One module for each loss."""
