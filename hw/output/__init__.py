"""What leaves the engine: write-back and top-k."""
