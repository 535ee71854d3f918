"""Images in memory: the one decoder, data sources, and scenes drawn on the fly."""
