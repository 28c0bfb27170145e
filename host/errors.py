"""The base of all errors that a person can mend: each message is one sentence for the user."""

import importlib.util

__all__ = ["MemoryMissing", "TallyError", "UserError", "need_package"]


class TallyError(Exception):
    """Something cannot be done as it was asked; the message names what, where and why."""


class UserError(TallyError):
    """The command line asks for what cannot be."""


class MemoryMissing(TallyError):
    """There is not enough memory for what was asked for."""


def need_package(package: str, option: str, extra: str) -> None:
    """Raise a UserError if an option's package is not installed."""
    if importlib.util.find_spec(package) is None:
        raise UserError(f"Option {option} needs {package}, an optional extra: "
                        f"pip install -e '.[{extra}]'")
