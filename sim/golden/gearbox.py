"""What the memory behind the weight port sends: the words of a product, cut into transfers."""

from hw.config import EngineConfig

__all__ = ["port_payloads", "port_transfers"]


def port_payloads(config: EngineConfig, words: list[int]) -> list[dict[str, int]]:
    """Transfers of one product; the golden counterpart of :class:`hw.engine.gearbox.Gearbox`.

    Parameters
    ----------
    words : list of int
        Weight words of the product, each ``8 * config.word_bytes`` bits.

    Returns
    -------
    list of dict
        Payloads of :func:`hw.engine.gearbox.port_layout`. The padding is all ones, so that it
        cannot pass for the zeros of an idle wire.
    """
    size = config.port_bytes
    count = port_transfers(config, len(words))
    text = b"".join(word.to_bytes(config.word_bytes, "little") for word in words)
    spare = count * size - len(text)
    text += b"\xff" * spare
    payloads = [{"data": int.from_bytes(text[k * size:(k + 1) * size], "little"),
                 "last": 0, "spare": 0} for k in range(count)]
    payloads[-1]["last"] = 1
    if config.port_bytes > config.word_bytes:
        payloads[-1]["spare"] = spare
    return payloads


def port_transfers(config: EngineConfig, words: int) -> int:
    """Count the transfers of the weight port for ``words`` weight words of one product."""
    return -(-words * config.word_bytes // config.port_bytes)
