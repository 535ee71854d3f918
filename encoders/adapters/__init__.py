"""One module for each library that encoders come from."""
