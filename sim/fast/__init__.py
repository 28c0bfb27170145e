"""Simulators without cocotb, compiled by Verilator."""
