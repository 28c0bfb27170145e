"""The vector unit: bf16 elements, a word of them a cycle."""
