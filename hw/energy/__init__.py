"""Energy an operation of single units, from netlists of standard cells."""
