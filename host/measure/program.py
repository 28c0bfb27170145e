"""What a compiled program reads for a token: matrices by trit planes, and bits of no use."""

import dataclasses
import re

from host.files.image import Image
from hw.isa import Opcode
from sim.timing.program import TokenCycles

__all__ = ["PlaneCount", "losses", "planes_of"]


@dataclasses.dataclass(frozen=True)
class PlaneCount:
    """Matrices of one number of trit planes.

    Attributes
    ----------
    products : int
        A matrix with more rows than accumulators is several.
    weights : int
    bytes : int
        In memory, with padding.
    token_bytes : int
        Read for a token by dense lists; of the embedding only a column is.
    """

    products: int = 0
    weights: int = 0
    bytes: int = 0
    token_bytes: int = 0


def planes_of(image: Image) -> dict[int, PlaneCount]:
    """Sum up the matrices of an image by the number of their trit planes, fewest first."""
    parts = {part.address: part for part in image.parts}
    found: dict[int, PlaneCount] = {}
    opens = Opcode.TOKEN
    for instruction in image.program.instructions:
        if instruction.opcode in (Opcode.TOKEN, Opcode.QUANTIZE):
            opens = instruction.opcode
        if instruction.opcode is not Opcode.MATMUL:
            continue
        part, planes = parts[instruction.address], instruction.b
        before = found.get(planes, PlaneCount())
        read = part.bytes // (instruction.count if opens is Opcode.TOKEN else 1)
        found[planes] = PlaneCount(
            before.products + 1, before.weights + part.trits // planes,
            before.bytes + part.bytes, before.token_bytes + read)
    return dict(sorted(found.items()))


def losses(image: Image, cost: TokenCycles) -> list[tuple[str, float]]:
    """Say where the port's bits go that are of no use: reason and share, largest first.

    Useful are weights, and keys and values.

    Parameters
    ----------
    image : Image
    cost : TokenCycles
        Of the image's program.
    """
    config, program = image.config, image.program
    peak = 8 * config.port_bytes * cost.cycles * (1 - cost.refresh)
    vectors = sum(16 * instruction.count for instruction in program.token()
                  if instruction.opcode in (Opcode.LOAD, Opcode.STORE, Opcode.LOAD_AT))
    moved = 8 * config.port_bytes * cost.transfers
    shares = {"padding of weight words and columns": (moved - vectors - cost.useful_bits) / peak,
              "vectors of constants": vectors / peak}
    for instruction, note, idle in zip(program.instructions, program.notes, cost.idle.tolist(),
                                       strict=True):
        what = re.sub(r"blk\.\d+[.:] *|(, heads \d+ to| of head|, head) \d+", "", note)
        reason = f"port idle during {instruction.opcode.name}, {what}"
        shares[reason] = shares.get(reason, 0.0) + idle / cost.cycles
    return sorted(shares.items(), key=lambda item: -item[1])
