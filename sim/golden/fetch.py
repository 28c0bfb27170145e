"""What the read engine delivers: the bytes of a product or a vector, cut into transfers."""

from collections.abc import Sequence

from hw.config import AcceleratorConfig

__all__ = ["fetched_bytes", "fetched_transfers"]


def fetched_bytes(memory: bytes, address: int, size: int, indices: Sequence[int]) -> bytes:
    """Join the columns ``indices`` of ``size`` bytes each, the first of which is at ``address``."""
    return b"".join(memory[address + index * size:address + (index + 1) * size]
                    for index in indices)


def fetched_transfers(config: AcceleratorConfig, text: bytes, *,
                      listed: bool = False) -> list[tuple[bytes, bool, int]]:
    """Cut ``text`` into transfers: bytes without padding, ``last``, bytes of padding.

    ``last`` of listed columns is set only where padding follows. The golden counterpart of
    :class:`hw.memory.read_engine.ReadEngine`.
    """
    size = config.port_bytes
    chunks = [text[k:k + size] for k in range(0, len(text), size)]
    transfers = [(chunk, False, 0) for chunk in chunks]
    if chunks:
        padding = size - len(chunks[-1])
        transfers[-1] = (chunks[-1], not listed or padding > 0, padding)
    return transfers
