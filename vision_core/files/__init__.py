"""Files that others may have written, and files that others will read."""
