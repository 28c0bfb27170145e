"""What proofs assume of a stream's neighbours, and what they assert of a stream.

The rules are those of Amaranth's streams: a transfer happens in a cycle with ``valid`` and
``ready``; what is offered is offered unchanged until it is taken. The reset may come in any cycle:
it ends what was offered and what was under way, for the units and for the registers here alike.
"""

from collections.abc import Callable

from amaranth import *
from amaranth.asserts import AnySeq
from amaranth.hdl import Assert, Assume

__all__ = ["Order", "accept", "assert_delayed", "assert_stable", "assert_within", "offer"]


def _patience(m: Module, waits: Value, limit: int | None) -> Value:
    """Return whether ``waits`` has held in the ``limit - 1`` cycles before this one."""
    if limit is None:
        return C(0)
    waited = Signal(range(limit), name="waited")
    with m.If(waits & (waited != limit - 1)):
        m.d.sync += waited.eq(waited + 1)
    with m.Elif(~waits):
        m.d.sync += waited.eq(0)
    return waited == limit - 1


def offer(m: Module, stream, *, legal: Callable | None = None, allowed: Value | int = 1,
          every: int | None = None) -> None:
    """Offer anything on a stream that a component takes, and hold it until it is taken.

    Parameters
    ----------
    m : Module
    stream
        Input of the component.
    legal : callable, optional
        Tells of a payload whether it may be offered. It must hold of a payload until it is taken,
        and of some payload whenever one is due: else the proof says nothing of such a case.
    allowed : Value
        Something new may be offered.
    every : int, optional
        At most ``every - 1`` cycles in which it may pass without an offer.
    """
    waits, held = Signal(), Signal(len(stream.p.as_value()))
    due = _patience(m, allowed & ~stream.valid, every)
    m.d.comb += [
        stream.p.eq(Mux(waits, held, AnySeq(len(held)))),
        stream.valid.eq(waits | (allowed & (due | AnySeq(1)))),
    ]
    m.d.sync += [waits.eq(stream.valid & ~stream.ready), held.eq(stream.p)]
    if legal is not None:
        m.d.comb += Assume(~stream.valid | legal(stream.p))


def accept(m: Module, stream, *, every: int | None = None) -> None:
    """Take from a stream that a component offers in any cycles.

    Parameters
    ----------
    m : Module
    stream
        Output of the component.
    every : int, optional
        What is offered is taken in the ``every``-th cycle at the latest.
    """
    due = _patience(m, stream.valid & ~stream.ready, every)
    m.d.comb += stream.ready.eq(due | AnySeq(1))


def assert_stable(m: Module, stream) -> None:
    """Assert that what is offered stays offered, unchanged, until it is taken."""
    waits, held = Signal(), Signal(len(stream.p.as_value()), reset_less=True)
    m.d.sync += [waits.eq(stream.valid & ~stream.ready), held.eq(stream.p)]
    m.d.comb += [
        Assert(~waits | stream.valid, "what is offered stays offered"),
        Assert(~waits | (held == stream.p.as_value()), "what is offered stays the same"),
    ]


def assert_within(m: Module, waits: Value, happens: Value, cycles: int) -> None:
    """Assert that while ``waits`` holds, ``happens`` is true in one of each ``cycles`` cycles."""
    waited = Signal(range(cycles + 1))
    m.d.sync += waited.eq(Mux(waits & ~happens, waited + (waited != cycles), 0))
    m.d.comb += Assert(waited != cycles, "what waits is served")


def assert_delayed(m: Module, i, o, *, item: Value, found: Value, latency: int) -> None:
    """Assert that an item leaves a pipeline ``latency`` moves after it went in.

    The pipeline stands still as a whole. It moves unless its output waits; so no item is lost,
    doubled, changed or overtaken, and one is taken in each move.
    """
    move = ~o.valid | o.ready
    valid: Value = i.valid
    value = Value.cast(item)
    for stage in range(latency):
        after, kept = Signal(name=f"after_{stage}"), Signal.like(value, name=f"kept_{stage}")
        with m.If(move):
            m.d.sync += [after.eq(valid), kept.eq(value)]
        valid, value = after, kept
    m.d.comb += [
        Assert(i.ready == move, "the pipeline moves unless its output waits"),
        Assert(o.valid == valid, "an item comes out after as many moves as there are stages"),
        Assert(~o.valid | (found == value), "what comes out is what went in"),
    ]


class Order:
    """Items come out of a unit in the order in which they went in: none lost, doubled or changed.

    One item, any, is marked as it goes in, with the count of those before it that are still inside.
    When as many have come out, the next one is compared with it. So the proof is one of every item
    of every sequence, however long.

    Parameters
    ----------
    m : Module
    given : Value
        Items that go in in this cycle.
    item : callable
        Returns the value of one of them, counted from 0.
    taken : Value
        Items that come out in this cycle.
    found : callable
        Returns the value of one of them, counted from 0.
    capacity : int
        Most items inside at a time.
    through : bool
        An item may come out in the cycle in which it goes in.
    enable : Value
        An item may be marked.

    Attributes
    ----------
    inside : Signal
        Items that went in and have not come out.
    """

    def __init__(self, m: Module, *, given: Value, item: Callable, taken: Value, found: Callable,
                 capacity: int, through: bool = False, enable: Value | int = 1):
        given, taken = Value.cast(given), Value.cast(taken)
        most = 2 ** len(given) - 1
        self.inside = Signal(range(capacity + most + 1))
        available = Signal(range(capacity + 2 * most + 1))
        lane = Signal(len(given))
        mark, marked = Signal(), Signal()
        place, before = Signal.like(available), Signal.like(available)
        value, wanted = Signal(len(Value.cast(item(lane)))), Signal(len(Value.cast(item(lane))))
        m.d.comb += [
            available.eq(self.inside + (given if through else 0)),
            Assert(taken <= available, "nothing comes out that did not go in"),
            Assert(self.inside <= capacity, "no more is inside than there is room for"),
            lane.eq(AnySeq(len(given))),
            mark.eq(AnySeq(1) & ~marked & (lane < given) & enable),
        ]
        # Items before the marked one; in the cycle of its going in, from its place there.
        here = Signal()
        m.d.comb += [
            place.eq(Mux(mark, self.inside + lane, before)),
            value.eq(Mux(mark, item(lane), wanted)),
            here.eq(marked | (mark if through else 0)),
        ]
        m.d.sync += [
            self.inside.eq(self.inside + given - taken),
            wanted.eq(value),
            before.eq(place - taken),
            marked.eq(mark | marked),
        ]
        with m.If(here & (taken > place)):
            m.d.sync += marked.eq(0)
            m.d.comb += Assert(Value.cast(found(place)) == value, "what comes out is what went in")
