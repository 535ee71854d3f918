"""Programs a user launches."""
