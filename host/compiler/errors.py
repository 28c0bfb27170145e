"""Errors of the compiler."""

from host.errors import TallyError

__all__ = ["CompileError"]


class CompileError(TallyError):
    """A model cannot be compiled for a configuration; the message is one sentence."""
