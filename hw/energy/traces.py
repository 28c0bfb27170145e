"""What goes into each measured unit, and what its golden function says must come out."""

from collections.abc import Callable, Generator, Mapping, Sequence

import numpy as np
from amaranth.hdl import Value
from amaranth.lib import wiring
from amaranth.lib.wiring import In
from amaranth.sim import Simulator
from numpy.typing import NDArray

from hw.activations.quantizer import Quantizer
from hw.activations.sparsity import SparsityPolicy
from hw.config import AcceleratorConfig
from hw.energy.circuits import ACCUMULATOR_BITS, LATENCY
from hw.energy.measure import Check, Trace
from hw.energy.operands import from_bits, normal, recorded, to_bits, trits
from hw.engine.loop_nest import entry_layout
from hw.formats.minifloat import MiniFloat, bf16, e4m3, e5m2, fp32
from hw.formats.trits import PACKINGS
from hw.vector.lane import PRODUCT_LATENCY, WIDE_LATENCY
from hw.vector.memory import READ_LATENCY
from sim.golden.bf16 import add
from sim.golden.lmul import exact_product, lmul, lmul_bound, lmul_dot, lmul_wide
from sim.golden.quantizer import quantize
from sim.golden.wina import keep_largest, scores

__all__ = ["DOT_LENGTH", "KINDS", "accumulated_floats", "accumulated_integers", "accumulated_trits",
           "added_floats", "added_integers", "decoded", "dot_products", "lane_products",
           "of_kinds", "products", "quantized", "selected", "streamed_products", "streamed_sums"]

#: Kinds of operands: random ones, and those of the shipped model.
KINDS = ("random", "recorded")
#: Products of a dot product.
DOT_LENGTH = 64

_OPERATIONS = 1024
#: Operations before those that are measured: they fill every pipeline.
_BEFORE = 32
_COUNT = _OPERATIONS + _BEFORE
_RESET_CYCLES = 4
#: Of LMulDot's stream of bounds.
_BOUND_BITS = 10
#: Lists before those that are measured.
_WARM_LISTS = 2
#: Cycles behind the last input: no unit here takes longer.
_DRAIN = 40

Array = NDArray[np.integer]


# Operands.

def _pairs(fmt: MiniFloat, kind: str) -> tuple[Array, Array]:
    """Operands of products.

    Recorded ones of bf16 are the machine's; those of the other formats are rounded from the same
    products of the exact float32 model, of the 8-bit formats after all were multiplied by the power
    of two that brings the largest to the format's largest exponent.
    """
    if kind == "random":
        return tuple(to_bits(fmt, normal(seed, _COUNT)) for seed in (1, 2))  # type: ignore
    operands = recorded()
    if fmt == bf16:
        return operands.lmul_x[:_COUNT], operands.lmul_y[:_COUNT]
    found = []
    for values in (operands.float_x[:_COUNT], operands.float_y[:_COUNT]):
        if fmt in (e4m3, e5m2):
            top = (fmt.largest_finite >> fmt.mantissa_bits) - fmt.bias
            values = np.ldexp(values, top - np.frexp(np.abs(values).max())[1])
        found.append(to_bits(fmt, values))
    return found[0], found[1]


def _activations(fmt: MiniFloat, kind: str) -> Array:
    """Activations in front of a matrix, as a floating-point machine would have them."""
    if kind == "random":
        return to_bits(fmt, normal(1, _COUNT))
    return to_bits(fmt, from_bits(bf16, np.resize(recorded().vectors, _COUNT)) / 64)


def _codes(kind: str) -> Array:
    """int8 activations."""
    if kind == "random":
        return np.clip(np.rint(36 * normal(1, _COUNT)), -127, 127).astype(np.int64)
    return np.resize(recorded().codes, _COUNT).astype(np.int64)


def _integer_weights(width: int) -> Array:
    most = (1 << (width - 1)) - 1
    return np.clip(np.rint(most / 3.5 * normal(2, _COUNT)), -most - 1, most).astype(np.int64)


def _trit_weights(kind: str) -> Array:
    if kind == "random":
        return trits(2, _COUNT)
    weights = recorded().trits
    # A lane has one row, whose columns come one after the other.
    return np.resize(weights[:_COUNT // weights.shape[1] + 1], _COUNT).astype(np.int64)


def _unsigned(values: Sequence[int] | Array, width: int) -> list[int]:
    return [int(value) & (1 << width) - 1 for value in values]


def _first(length: int = DOT_LENGTH) -> Array:
    return (np.arange(_COUNT) % length == 0).astype(np.int64)


def _running(terms: NDArray, dtype: type) -> NDArray:
    """Add up the terms so far, in order, in a type; each dot product begins anew."""
    total, found = dtype(0), []
    for term, first in zip(terms.astype(dtype), _first(), strict=True):
        total = term + (dtype(0) if first else total)
        found.append(total)
    return np.array(found)


# Traces of circuits: an operation a cycle.

def _trace(inputs: Mapping[str, Sequence[int]], *checks: Check) -> Trace:
    """Feed one operation a cycle; each input stays at its last value in the end."""
    count = len(next(iter(inputs.values())))
    padded = {name: [*map(int, values), *[int(values[-1])] * _DRAIN]
              for name, values in inputs.items()}
    return Trace({"rst": [0] * (count + _DRAIN), **padded}, range(_BEFORE, count),
                 count - _BEFORE, checks)


def _circuit(inputs: Mapping[str, Sequence[int]], expected: Sequence[int],
             masks: Sequence[int] | None = None) -> Trace:
    return _trace(inputs, Check("o", expected, latency=LATENCY, masks=masks))


def products(fmt: MiniFloat, kind: str, *, exact: bool) -> Trace:
    """Trace products of :func:`hw.energy.circuits.product`."""
    x, y = _pairs(fmt, kind)
    wanted = exact_product(fmt, x, y) if exact else lmul(fmt, x, y)
    return _circuit({"x": x, "y": y}, wanted.tolist())


def accumulated_floats(fmt: MiniFloat, kind: str, *, exact: bool) -> Trace:
    """Trace dot products of :func:`hw.energy.circuits.accumulated_floats`."""
    x, y = _activations(fmt, kind), to_bits(fmt, normal(2, _COUNT))
    if exact and fmt == fp32:
        terms = from_bits(fmt, exact_product(fmt, x, y))
    elif exact:
        terms = from_bits(fmt, x) * from_bits(fmt, y)       # 22 bits at most
    else:
        sign, result, zero, nan, infinite = lmul_wide(fmt, x, y)
        assert not (nan | infinite).any()
        one = 1 << fmt.mantissa_bits
        terms = np.where(zero, 0.0, np.ldexp(
            np.where(sign, -1.0, 1.0) * (one + result % one),
            (result // one - fmt.bias - fmt.mantissa_bits).astype(np.int64)))
    sums = _running(terms, np.float32)
    return _circuit({"x": x, "y": y, "first": _first()}, sums.view(np.uint32).tolist())


def added_floats(kind: str) -> Trace:
    """Trace sums of :func:`hw.energy.circuits.float_sum`."""
    x, y = _pairs(fp32, kind)
    total = x.view(np.float32) + y.view(np.float32)
    return _circuit({"x": x, "y": y}, total.view(np.uint32).tolist())


def added_integers(width: int, kind: str) -> Trace:
    """Trace sums of integers: of the bits of fp32 numbers, which is what L-Mul adds."""
    x, y = _pairs(fp32, kind)
    total = x.astype(np.int64) + y.astype(np.int64)
    return _circuit({"x": x, "y": y}, _unsigned(total, width))


def accumulated_integers(width: int, kind: str) -> Trace:
    """Trace dot products of int8 activations and integers of ``width`` bits."""
    x, y = _codes(kind), _integer_weights(width)
    return _circuit({"x": _unsigned(x, 8), "y": _unsigned(y, width), "first": _first()},
                    _unsigned(_running(x * y, np.int64), ACCUMULATOR_BITS))


def accumulated_trits(kind: str) -> Trace:
    """Trace dot products of int8 activations and trits."""
    x, weights = _codes(kind), _trit_weights(kind)
    return _circuit({"x": _unsigned(x, 8), "nonzero": weights != 0, "negative": weights < 0,
                     "first": _first()},
                    _unsigned(_running(x * weights, np.int64), ACCUMULATOR_BITS))


def decoded(packing: str, kind: str) -> Trace:
    """Trace codes of trits; an operation is a code."""
    found = PACKINGS[packing]
    if kind == "random":
        values = trits(1, found.trits * _COUNT).reshape(-1, found.trits)
    else:
        # The engine walks by column: a code has rows, and columns follow one another.
        weights = recorded().trits
        rows = len(weights) // found.trits * found.trits
        values = np.resize(weights[:rows].reshape(-1, found.trits, weights.shape[1])
                           .swapaxes(1, 2).reshape(-1, found.trits), (_COUNT, found.trits))
    table, read = found.encode_table(), found.decode_table()
    codes = [table[tuple(int(trit) for trit in row)] for row in values]
    expected, masks = [], []
    for code in codes:
        nonzero = sum((trit != 0) << k for k, trit in enumerate(read[code]))
        negative = sum((trit < 0) << k for k, trit in enumerate(read[code]))
        expected.append(nonzero | negative << found.trits)
        masks.append((1 << found.trits) - 1 | nonzero << found.trits)
    return _circuit({"code": codes}, expected, masks)


def lane_products(kind: str) -> Trace:
    """Trace products of :class:`hw.vector.lane.LMulLane`, rounded and before their range check."""
    x, y = _pairs(bf16, kind)
    _, wide, zero, nan, infinite = lmul_wide(bf16, x, y)
    assert not (nan | infinite).any()
    width = bf16.magnitude_width + 2
    return _trace({"x": x, "y": y},
                  Check("product", lmul(bf16, x, y).tolist(), latency=PRODUCT_LATENCY),
                  Check("wide", _unsigned(wide, width), latency=WIDE_LATENCY),
                  Check("zero", zero.astype(int).tolist(), latency=WIDE_LATENCY))


# Traces of streams that never wait.

def _stream(payload: Sequence[int], check: Check, **more: Sequence[int]) -> Trace:
    """Feed a payload a cycle into stream ``i``."""
    count = len(payload)

    def padded(values: Sequence[int], before: int, after: int) -> list[int]:
        return [before] * _RESET_CYCLES + list(map(int, values)) + [after] * _DRAIN

    inputs = {"rst": padded([0] * count, 1, 0), "i__payload": padded(payload, 0, 0),
              "i__valid": padded([1] * count, 0, 0), "o__ready": padded([1] * count, 1, 1),
              **{name: padded(values, 0, 0) for name, values in more.items()}}
    return Trace(inputs, range(_RESET_CYCLES + _BEFORE, _RESET_CYCLES + count), count - _BEFORE,
                 (check,))


def _joined(fmt: MiniFloat, x: Array, y: Array) -> list[int]:
    return [int(a) | int(b) << fmt.width for a, b in zip(x, y, strict=True)]


def streamed_products(fmt: MiniFloat, kind: str, *, exact: bool) -> Trace:
    """Trace products of the pipelined units of :mod:`hw.arith`."""
    x, y = _pairs(fmt, kind)
    wanted = exact_product(fmt, x, y) if exact else lmul(fmt, x, y)
    return _stream(_joined(fmt, x, y), Check("o__payload", wanted.tolist(), valid="o__valid"))


def streamed_sums(kind: str) -> Trace:
    """Trace sums of :class:`hw.arith.bf16_add.Bf16Adder`."""
    x, y = _pairs(bf16, kind)
    return _stream(_joined(bf16, x, y),
                   Check("o__payload", add(x, y).tolist(), valid="o__valid"))


def dot_products(fmt: MiniFloat, kind: str) -> Trace:
    """Trace dot products of :class:`hw.arith.lmul_dot.LMulDot`; an operation is one product."""
    count = _COUNT // DOT_LENGTH * DOT_LENGTH
    x = _activations(fmt, kind)[:count].reshape(-1, DOT_LENGTH)
    y = to_bits(fmt, normal(2, count)).reshape(-1, DOT_LENGTH)
    payload = [word | (k % DOT_LENGTH == DOT_LENGTH - 1) << 2 * fmt.width
               for k, word in enumerate(_joined(fmt, x.reshape(-1), y.reshape(-1)))]
    check = Check("o__payload", lmul_dot(fmt, x, y).tolist(), valid="o__valid")
    if fmt != bf16:
        return _stream(payload, check)
    bounds = np.repeat(lmul_bound(fmt, x, y), DOT_LENGTH)
    return _stream(payload, check, i_bound__payload=_unsigned(bounds, _BOUND_BITS),
                   i_bound__valid=[1] * count)


# Traces of units that answer: what the RTL does in Amaranth's own simulator tells when.

#: A unit's surroundings: yields the inputs of a cycle, and is sent the outputs of that cycle.
Surroundings = Generator[Mapping[str, int], dict[str, int], None]


def _record(unit: wiring.Component, surroundings: Surroundings) -> dict[str, list[int]]:
    """Return the inputs that a unit gets in surroundings, after a reset."""
    ports = {"__".join(map(str, path)): (member.flow is In, Value.cast(value))
             for path, member, value in unit.signature.flatten(unit)}
    given: dict[str, list[int]] = {name: [0] * _RESET_CYCLES
                                   for name, (is_input, _) in ports.items() if is_input}

    async def testbench(ctx):
        inputs = next(surroundings)
        while True:
            for name, values in given.items():
                values.append(inputs.get(name, 0))
                ctx.set(ports[name][1], inputs.get(name, 0))
            outputs = {name: int(ctx.get(value)) for name, (is_input, value) in ports.items()
                       if not is_input}
            await ctx.tick()
            try:
                inputs = surroundings.send(outputs)
            except StopIteration:
                return

    simulator = Simulator(unit)
    simulator.add_clock(1e-6)
    simulator.add_testbench(testbench)
    simulator.run()
    count = len(next(iter(given.values())))
    return {"rst": [1] * _RESET_CYCLES + [0] * (count - _RESET_CYCLES), **given}


class _Memory:
    """Words that a unit reads, as :class:`hw.vector.memory.VectorMemory` delivers them."""

    def __init__(self, words: Sequence[int]):
        self.words = words
        self.coming: list[int | None] = [None] * (READ_LATENCY - 1)
        self.data = 0

    def clock(self, outputs: Mapping[str, int]) -> None:
        """Take the read of a cycle, and deliver an earlier one in the next cycle."""
        self.coming.append(self.words[outputs["read__address"] % len(self.words)]
                           if outputs["read__enable"] else None)
        found = self.coming.pop(0)
        if found is not None:
            self.data = found


def _words(elements: Array, lanes: int) -> list[int]:
    """Pack 16-bit elements into words of the vector memory."""
    padded = np.zeros(-(-len(elements) // lanes) * lanes, np.uint16)
    padded[:len(elements)] = elements
    return [int.from_bytes(word.astype("<u2").tobytes(), "little")
            for word in padded.reshape(-1, lanes)]


def _entries(config: AcceleratorConfig, indices: Sequence[int] | Array,
             values: Sequence[int] | Array, end_index: int) -> list[int]:
    """Pack the entries of a list, and its end."""
    layout = entry_layout(config.engine)
    rows = [(int(index), int(value), 0) for index, value in zip(indices, values, strict=True)]
    return [layout.const({"index": index, "value": value, "end": end}).as_bits()
            for index, value, end in [*rows, (end_index, 0, 1)]]


def quantized(config: AcceleratorConfig, kind: str) -> Trace:
    """Trace vectors through the quantizer; an operation is an element."""
    count = 256
    if kind == "random":
        vectors = to_bits(bf16, normal(1, 5 * count)).reshape(5, count)
    else:
        vectors = recorded().vectors[[0, 0, 1, 2, 3]]
    codes = quantize(vectors)
    unit = Quantizer(config)
    command = unit.i_commands.payload.shape()
    words = count // config.vector_lanes
    memory = _Memory(_words(vectors.reshape(-1), config.vector_lanes))
    started: list[int] = []

    def surroundings() -> Surroundings:
        cycle = 0
        for number in range(len(vectors)):
            accepted = done = False
            while not done:
                outputs = yield {
                    "i_commands__valid": not accepted, "o_entries__ready": 1,
                    "o_results__ready": 1, "read__data": memory.data,
                    "i_commands__payload": command.const(
                        {"sparse": 1, "a": number * words, "words": words}).as_bits()}
                memory.clock(outputs)
                if not accepted and outputs["i_commands__ready"]:
                    accepted = True
                    started.append(cycle)
                done = bool(outputs["o_results__valid"])
                cycle += 1
        started.append(cycle)

    inputs = _record(unit, surroundings())
    result = unit.o_results.payload.shape()
    entries = [entry for values in codes.values for entry in _entries(
        config, np.flatnonzero(values), values[values != 0], count)]
    results = [result.const({"exponent": int(exponent), "fault": 0}).as_bits()
               for exponent in codes.exponents]
    return Trace(inputs, range(_RESET_CYCLES + started[1], _RESET_CYCLES + started[-1]),
                 count * (len(vectors) - 1),
                 (Check("o_entries__payload", entries, valid="o_entries__valid"),
                  Check("o_results__payload", results, valid="o_results__valid")))


def selected(config: AcceleratorConfig, lanes: int, kind: str) -> Trace:
    """Trace lists through the sparsity policy, which keeps half of each.

    An operation is an entry that comes in.
    """
    count, lists = config.list_depth, 9
    if kind == "random":
        codes = np.clip(np.rint(36 * normal(1, lists * count)), -127, 127).astype(np.int8)
        norms = np.rint(1000 + 30 * normal(2, count)).astype(np.uint16)
    else:
        codes = np.resize(recorded().codes, lists * count)
        norms = recorded().norms[:count]
    codes = codes.reshape(lists, count)
    # Lists in front of those that are measured fill every word of the unit's memories.
    codes = np.concatenate([np.where(codes[:1] == 0, 1, codes[:1]), codes])
    unit = SparsityPolicy(config, lanes=lanes)
    command = unit.i_commands.payload.shape()
    # Address 0 stands for norms that are all one.
    memory = _Memory([0, *_words(norms, config.vector_lanes)])
    keep, started = count // 2, []
    expected: list[int] = []
    masks: list[int] = []
    everything = _entries(config, [-1], [-1], 0)[0]
    end = _entries(config, [], [], 0)[0]

    def surroundings() -> Surroundings:
        cycle = 0
        for values in codes:
            found = scores(values, norms)
            kept = np.flatnonzero(keep_largest(found, keep) & (found > 0))
            words = _entries(config, kept, values[kept], 0)
            expected.extend(words)
            masks.extend([everything | end] * (len(words) - 1) + [end])
            listed = np.flatnonzero(values)
            entries = _entries(config, listed, values[listed], count)
            accepted, sent, done = False, 0, False
            while not done:
                sending = accepted and sent < len(entries)
                outputs = yield {
                    "i_commands__valid": not accepted,
                    "i_commands__payload": command.const(
                        {"largest": 1, "norms": 1, "keep": keep}).as_bits(),
                    "i_entries__valid": sending, "o_entries__ready": 1,
                    "i_entries__payload": entries[sent] if sending else 0,
                    "read__data": memory.data}
                memory.clock(outputs)
                if not accepted and outputs["i_commands__ready"]:
                    accepted = True
                    started.append(cycle)
                elif sending and outputs["i_entries__ready"]:
                    sent += 1
                done = bool(outputs["o_entries__valid"] and outputs["o_entries__payload"] & end)
                cycle += 1
        started.append(cycle)

    inputs = _record(unit, surroundings())
    return Trace(inputs, range(_RESET_CYCLES + started[_WARM_LISTS], _RESET_CYCLES + started[-1]),
                 int(np.count_nonzero(codes[_WARM_LISTS:])),
                 (Check("o_entries__payload", expected, valid="o_entries__valid",
                        masks=masks),))


def of_kinds(make: Callable[..., Trace], *arguments: object,
             **options: object) -> Callable[[], dict[str, Trace]]:
    """Return what makes the traces of both kinds of operands."""
    return lambda: {kind: make(*arguments, kind, **options) for kind in KINDS}
