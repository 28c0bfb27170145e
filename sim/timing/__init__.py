"""Closed formulas for cycles."""
