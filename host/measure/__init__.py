"""Measurements: accuracy, cycles, speed."""
