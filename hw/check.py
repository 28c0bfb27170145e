"""Parameter checks with one wording."""

from collections.abc import Iterable

__all__ = ["one_of", "positive_int"]


def positive_int(what: str, value: object) -> int:
    """Return ``value`` if it is a positive integer, or raise ``ValueError`` naming ``what``."""
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{what} must be a positive integer, not {value!r}")
    return value


def one_of(what: str, value: object, choices: Iterable) -> object:
    """Return ``value`` if it is among ``choices``, or raise ``ValueError`` listing them."""
    choices = list(choices)
    if value not in choices:
        listed = ", ".join(repr(choice) for choice in choices)
        raise ValueError(f"{what} must be one of {listed}, not {value!r}")
    return value
