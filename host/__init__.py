"""Driver, models and command line."""
