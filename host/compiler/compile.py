"""The compiler: a language model becomes a program and an image of its weights.

A :class:`sim.golden.graph.Network` is what the program computes, docs/machine.md the machine it
runs on.

**Order.** Execution goes through the program once, but multiplying and reading weights run beside
it. So all products of one list are queued before the first of them is drained: the engine
multiplies the next matrix while this one's results are worked on, and weights are read ahead of
both. Every other step of the network is executed as soon as what it needs is there, in the
network's order: before the first product is queued, behind it, or behind a drain.

**Products.** A dense matrix is read as one stream. Of a list that leaves columns out, each column
is read with all transfers of the port that it touches; so the rows of all matrices of such a list
are divided into products whose columns are whole transfers.

**Places.** Elements of a vector lie in the order that instructions want, filled up with zeros to
whole words and transfers; rows and columns of matrices, and constants, follow. Heads that are
turned have all their first halves in front of their second ones, so that a VECTOR turns all heads
at once; other heads lie one behind the other.

**Vector memory.** Its first word is zero from power-up on and never written. From it, a new
sequence clears the state: each copy doubles what is zero. A vector keeps its place until it has
been read for the last time; a step may write its result over an operand that nobody reads again.

**Sparsity.** A list that leaves out what is zero changes no result. In a gated network, a row of
the up projection counts only where its gate is not zero: it is walked by row, for a list of the
gates that are alive, and drained into a place of its own, which holds finite numbers from the
clearing on; so what is not drained is multiplied by a zero. Only lists of a mask file lose
something.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

from host.compiler.allocate import Progress
from host.compiler.emit import Compiler, Magnitudes
from host.compiler.errors import CompileError
from host.compiler.layout import Layout
from host.compiler.pack import row_bounds
from host.files.image import Image
from host.models.base import LanguageModel
from hw.config import TILE, AcceleratorConfig
from hw.isa import REGISTERS
from sim.golden.graph import Kind, Value
from sim.golden.wina import MaskMap

__all__ = ["CONTEXT", "compile_fitted", "compile_model", "sequence_context"]


def compile_model(model: LanguageModel, config: AcceleratorConfig, *, sparse: bool = False,
                  masks: MaskMap | None = None, prefill: int = 1,
                  progress: Progress | None = None) -> Image:
    """Compile a model for a configuration.

    Parameters
    ----------
    model : LanguageModel
    config : AcceleratorConfig
    sparse : bool
        Leave out what is zero of the lists where that pays: their columns cannot be read ahead.
        Where the engine walks by row, rows of an up projection whose gate is zero are left out too.
        No result changes.
    masks : mapping of str to Mask, optional
        Of lists, by label: which of their entries are kept. Results change.
    prefill : int
        Tokens of a prompt that are read together, a power of two; each weight is read once for
        them. No result changes. Only for models without attention.
    progress : callable, optional
        Called with the share that is done (0 to 1) and what is packed next.

    Raises
    ------
    CompileError
        If the model does not fit, or a row of a matrix could overflow an accumulator.
    MemoryMissing
        If this machine has not enough memory for the image.
    """
    if model.context and not config.context:
        raise CompileError(f"Model {model.name} needs attention: configuration field context must "
                           f"be a number of tokens, not 0")
    _check(model, config, masks, prefill)
    pack = _prepare(model, progress)
    return _compiler(model, config, sparse, masks, prefill, {}).compile(pack)


def sequence_context(most: int, config: AcceleratorConfig, *, fitted: bool) -> int:
    """Return the tokens that a sequence may have when a model is compiled, before it is.

    Parameters
    ----------
    most : int
        The model's own context; 0 for one without attention.
    config : AcceleratorConfig
    fitted : bool
        Whether :func:`compile_fitted` will compile it, and not :func:`compile_model`.

    Returns
    -------
    int
        0 for a model without attention: any number.
    """
    return min(most, config.context or (CONTEXT if fitted else 0))


def _prepare(model: LanguageModel, progress: Progress | None) -> Progress | None:
    """Describe the network, and return what is told of the rest."""
    if progress is None:
        return None
    model.prepare(lambda done, what: progress(_PREPARED * done, what))
    return lambda done, what: progress(_PREPARED + (1 - _PREPARED) * done, what)


def _check(model: LanguageModel, config: AcceleratorConfig, masks: MaskMap | None,
           prefill: int) -> None:
    """Check what can be checked before the matrices' integers are found, which takes long."""
    if "lmul" not in model.logit_scales:
        raise CompileError(f"Model {model.name} must have a logit scale for arithmetic 'lmul'; "
                           f"find it with 'python -m host evaluate --fit'")
    most = min(config.engine.max_batch, REGISTERS // 2)
    if not 1 <= prefill <= most or prefill & (prefill - 1):
        raise CompileError(f"Tokens of a prompt that are read together must be a power of two up "
                           f"to {most}, not {prefill}")
    if prefill > 1 and masks:
        raise CompileError("Masks leave out entries of each token's list, so that tokens of a "
                           "prompt cannot be read together (try without one of the two)")
    if prefill > 1 and model.context:
        raise CompileError(f"Model {model.name} has attention, whose prompts are read token by "
                           f"token")


def _compiler(model: LanguageModel, config: AcceleratorConfig, sparse: bool,
              masks: MaskMap | None, prefill: int, known: Magnitudes) -> Compiler:
    """Check what can be checked before a program is written."""
    steps = model.network().steps
    # What fills a vector up stays zero under all functions but this one.
    unit = math.lcm(config.vector_lanes, max(1, config.port_bytes // 2))
    for step in steps:
        if step.kind is Kind.SIGMOID_OF_NEGATIVE and step.elements % unit:
            raise CompileError(f"Model {model.name} must have a width that is a multiple of {unit} "
                               f"for this configuration, not {step.elements}")
        rows = config.engine.max_rows // prefill
        if prefill > 1 and step.kind is Kind.LINEAR and len(step.weights.weights) > rows:
            raise CompileError(f"Matrix {step.weights.name} must have at most {rows} rows for "
                               f"{prefill} tokens at once (engine field accumulator_depth), "
                               f"not {len(step.weights.weights)}")
    return Compiler(model, config, sparse, masks, prefill, known)


# Of the time that compiling takes, about how much it takes to find the matrices' integers.
_PREPARED = 0.7

#: Tokens of a sequence at most, where nobody says how many.
CONTEXT = 2048


def compile_fitted(model: LanguageModel, base: AcceleratorConfig, *, sparse: bool = False,
                   masks: MaskMap | None = None, prefill: int = 1,
                   progress: Progress | None = None) -> Image:
    """Compile for an accelerator that is as large as it must be, if ``base`` may be too small.

    That is so for a transformer, for prompts that are read several tokens at once, and for a
    vocabulary that has more tokens than ``base`` has column indices.

    The accelerator has attention for the model's context, or :data:`CONTEXT` tokens if that is
    longer, unless ``base`` says how many. Its accumulators hold the sums of the longest rows.

    Parameters
    ----------
    model : LanguageModel
    base : AcceleratorConfig
        Its memories and lists are the smallest that the accelerator may have.
    sparse, masks, prefill, progress
        As :func:`compile_model` takes them.

    Raises
    ------
    CompileError
        As :func:`compile_model` does, or if no accelerator can have such heads.
    """
    _check(model, base, masks, prefill)
    progress = _prepare(model, progress)
    steps = model.network().steps
    attends = [step for step in steps if step.kind is Kind.ATTEND]
    layout = Layout(steps, base)
    longest = max(len(layout(step.operands[0])) for step in steps if step.kind is Kind.CODES)
    engine = dataclasses.replace(base.engine, index_width=max(
        base.engine.index_width, (model.vocab - 1).bit_length()))
    base = _replace(model, base, {"engine": engine})
    fields: dict[str, Any] = {
        "list_depth": max(base.list_depth, -(-longest * prefill // TILE) * TILE)}
    if not attends:
        if prefill == 1:
            return _compiler(model, base, sparse, masks, 1, {}).compile(progress)
        return _compile_fitted(model, base, fields, sparse, masks, prefill, progress)
    keys = [step.operands[1] for step in attends]
    context = base.context or 2 ** (min(key.context for key in keys) - 1).bit_length()
    group = max(step.heads // key.heads for step, key in zip(attends, keys, strict=True))
    group = min(group, 16)
    width = max(base.engine.accumulator_width, min(_accumulator_width(steps, base), 32))
    fields |= {
        "engine": dataclasses.replace(base.engine, accumulator_width=width),
        "context": max(2, context if base.context else min(context, CONTEXT)),
        "group": group, "attention_heads": min(group, base.attention_heads),
        "head_elements": max(2 * layout.half(step.elements // step.heads) for step in attends),
        "caches": 1 + sum(step.operands[2].heads for step in attends)}
    return _compile_fitted(model, base, fields, sparse, masks, prefill, progress)


def _replace(model: LanguageModel, base: AcceleratorConfig,
             fields: dict[str, Any]) -> AcceleratorConfig:
    """Change fields of a configuration as a model needs them."""
    try:
        return dataclasses.replace(base, **fields)
    except ValueError as error:
        raise CompileError(f"Model {model.name}: {error}") from None


def _accumulator_width(steps: Sequence[Value], config: AcceleratorConfig) -> int:
    """Bits that hold every product of the matrices, as pack_matrix wants them."""
    most = max(int(row_bounds(step.weights.weights, config.engine).max())
               for step in steps if step.kind in (Kind.LINEAR, Kind.HEAD))
    return most.bit_length() + 1


def _compile_fitted(model: LanguageModel, base: AcceleratorConfig, fields: dict[str, Any],
                    sparse: bool, masks: MaskMap | None, prefill: int,
                    progress: Progress | None) -> Image:
    """Compile for ``base`` with some ``fields``, and with memories that are large enough.

    How large they must be, a program for the largest ones says; no weight is laid out for that.
    """
    # Fields of an instruction hold elements in 16 bits.
    largest = _replace(model, base, fields | {
        "program_depth": 2 ** 16, "vector_depth": 2 ** 16 - 2 ** 16 % base.vector_lanes})
    known: Magnitudes = {}
    instructions, elements = _compiler(model, largest, sparse, masks, prefill, known).plan()
    config = dataclasses.replace(
        largest, program_depth=max(base.program_depth, 2 ** (instructions - 1).bit_length()),
        vector_depth=max(base.vector_depth, elements))
    return _compiler(model, config, sparse, masks, prefill, known).compile(progress)
