"""What makes a model cheaper to run after it was trained: masks, and rotations that help them."""
