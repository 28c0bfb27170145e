"""Cycles of each unit when nothing makes it wait: closed formulas, which the benches assert."""

import math

from hw.config import EngineConfig

__all__ = ["engine_cycles", "engine_lane_words", "engine_period", "gearbox_cycles",
           "port_transfers", "product_cycles"]


def engine_lane_words(config: EngineConfig, *, rows: int, columns: int, planes: int = 1,
                      batch: int = 1) -> int:
    """Count the useful cycles of a product: weight words times vectors."""
    return columns * planes * config.groups(rows) * batch


def engine_period(config: EngineConfig, *, rows: int, columns: int, planes: int = 1,
                  batch: int = 1) -> int:
    """Cycles from one product to the next when equal products follow one another.

    Parameters
    ----------
    rows : int
        Rows of the matrix.
    columns : int
        Listed columns.
    planes, batch : int
        As in the job.
    """
    slots = config.groups(rows) * batch
    # Two slots pause in each round; the last pause is that of the list's end.
    pause = 1 if slots == 2 else 0
    rounds = 1 + columns * planes       # the first one clears
    return (slots + pause) * rounds - pause + 3 + config.result_transfers(rows) * batch


def engine_cycles(config: EngineConfig, *, rows: int, columns: int, planes: int = 1,
                  batch: int = 1) -> int:
    """Cycles from the first list entry accepted to the last result delivered, both included.

    The parameters are those of :func:`engine_period`; the engine is idle before.
    """
    levels, banks = 0, config.lanes // config.result_lanes
    while banks > 1:
        levels, banks = levels + 1, -(-banks // 4)
    # The period includes the cycle of the first entry; a result leaves 6 cycles and the levels of
    # the OR tree after it is read.
    period = engine_period(config, rows=rows, columns=columns, planes=planes, batch=batch)
    return period + 6 + levels


def gearbox_cycles(config: EngineConfig, word_counts: list[int]) -> int:
    """Cycles of the gearbox from the first transfer accepted to the last word delivered.

    Both are included; the gearbox is empty before.

    Parameters
    ----------
    word_counts : list of int
        Weight words of each of the products that follow one another.
    """
    granule = math.gcd(config.port_bytes, config.word_bytes)
    levels = (config.port_bytes // granule).bit_length() - 1    # of the rotator
    if config.port_bytes < config.word_bytes:
        return sum(port_transfers(config, words) for words in word_counts) + levels + 4
    return sum(word_counts) + levels + 5


def port_transfers(config: EngineConfig, words: int) -> int:
    """Count the transfers of the weight port for ``words`` weight words of one product."""
    return -(-words * config.word_bytes // config.port_bytes)


def product_cycles(count: int, *, latency: int) -> int:
    """Cycles of a multiplier from the first pair accepted to the last product delivered.

    Both are included. It holds for L-Mul and for the exact multiplier.
    """
    return count + latency
