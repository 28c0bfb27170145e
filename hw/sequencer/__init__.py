"""What executes a program: decoder, list memory, and the choice of the largest results."""
