"""The memory port: bursts of reads and writes."""

from amaranth import *
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import bits_for

from hw.check import positive_int
from hw.config import BURST_TRANSFERS

__all__ = ["check_port_bytes", "error_layout", "port_signature", "read_layout", "transfer_layout",
           "write_layout"]


def read_layout(address_width: int) -> data.StructLayout:
    """Layout of a read: 1 to :data:`hw.config.BURST_TRANSFERS` transfers from ``address`` on."""
    return data.StructLayout({"address": address_width, "transfers": bits_for(BURST_TRANSFERS)})


def transfer_layout(port_bytes: int) -> data.StructLayout:
    """Layout of what comes back: the byte with the lowest address in the lowest bits."""
    return data.StructLayout({"data": 8 * port_bytes})


def write_layout(address_width: int, port_bytes: int) -> data.StructLayout:
    """Layout of a write: each transfer with its own address, those of a burst in sequence."""
    return data.StructLayout({"address": address_width, "data": 8 * port_bytes, "last": 1})


def error_layout(address_width: int) -> data.StructLayout:
    """Layout of an error of the memory: what was answered, to a read or a write of ``address``.

    ``response`` is that of AXI: 2 is SLVERR, 3 is DECERR.
    """
    return data.StructLayout({"valid": 1, "write": 1, "response": 2, "address": address_width})


def port_signature(*, address_width: int, port_bytes: int) -> wiring.Signature:
    """Build the side that asks: streams ``reads`` and ``writes`` out, ``data`` in.

    Addresses count bytes and are multiples of ``port_bytes``. Reads are answered in their order,
    after any time and with any gaps. A read that is accepted after a write finds what was written;
    one that is under way while its bytes are written finds either. A burst that has begun to be
    written goes on without waiting for a read.

    ``error`` is the first error since the user of the port was reset. It is valid before the data
    of the read that failed come, and stays as it is; all data come nevertheless.
    """
    return wiring.Signature({
        "reads": Out(stream.Signature(read_layout(address_width))),
        "data": In(stream.Signature(transfer_layout(port_bytes))),
        "writes": Out(stream.Signature(write_layout(address_width, port_bytes))),
        "error": In(error_layout(address_width)),
    })


def check_port_bytes(port_bytes: int) -> int:
    """Return ``port_bytes`` if it is a power of two, or raise ``ValueError``."""
    if positive_int("Port byte count", port_bytes) & (port_bytes - 1):
        raise ValueError(f"Port byte count must be a power of two, not {port_bytes}")
    return port_bytes
