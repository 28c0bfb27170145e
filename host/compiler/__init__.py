"""From a network to a program and an image for one configuration."""
