"""Boards, and the system on each."""
