"""What executes a program: sequencer, decoder, list memory, the choice of the largest results."""
