"""Number formats as plain data, without Amaranth."""
