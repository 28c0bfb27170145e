"""cocotb benches: one module a unit."""
