"""Vision encoders: judging frozen features, and pictures of them."""
