"""Joining streams: Amaranth 0.5 compares widths only, so a payload's layout is compared here."""

from amaranth.lib import wiring

__all__ = ["connect_stream"]


def connect_stream(m, producer, consumer):
    """Connect ``producer`` to ``consumer``.

    Raises
    ------
    TypeError
        If the payload shapes differ.
    """
    given, wanted = producer.payload.shape(), consumer.payload.shape()
    if given != wanted:
        raise TypeError(f"Stream payload shape must be {wanted!r}, not {given!r}")
    wiring.connect(m, producer, consumer)
