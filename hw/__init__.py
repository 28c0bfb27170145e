"""The accelerator, in Amaranth."""
