"""The base of all errors that a person can mend: each message is one sentence for the user."""

__all__ = ["TallyError", "UserError"]


class TallyError(Exception):
    """Something cannot be done as it was asked; the message names what, where and why."""


class UserError(TallyError):
    """The command line asks for what cannot be."""
