"""Small parts that every unit uses."""
