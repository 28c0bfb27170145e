"""The memory port, what can stand behind it, and what reads ahead through it."""
