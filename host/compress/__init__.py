"""What makes a model cheaper to run after it was trained: gates, and rotations that help them."""
