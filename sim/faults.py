"""Planted faults: each breaks one unit in one place, and a bench must catch it.

A fault is a change of text in a copy of the project; the bench runs on the copy and must fail. A
fault whose text is no longer found, or that no bench catches, is an error: the list cannot rot
silently.
"""

import dataclasses
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile

__all__ = ["FAULTS", "Fault", "FaultResult", "try_fault"]

ROOT = pathlib.Path(__file__).parent.parent


@dataclasses.dataclass(frozen=True)
class Fault:
    """One planted fault.

    Attributes
    ----------
    unit : str
        Unit that is broken.
    fault : str
        What is wrong, in words.
    path : str
        File, from the root of the project.
    old, new : str
        Text that occurs once in the file, and what replaces it.
    bench, case : str
        Bench that must catch it, and the case to run.
    """

    unit: str
    fault: str
    path: str
    old: str
    new: str
    bench: str
    case: str


@dataclasses.dataclass(frozen=True)
class FaultResult:
    """Whether a fault was caught, and the tests that failed."""

    fault: Fault
    caught: bool
    caught_by: str


FAULTS: tuple[Fault, ...] = (
    Fault("core", "entries of a batch are not apart by its vectors", "hw/core.py",
          "(packed.p.index << log2) | batch.slot", "packed.p.index | batch.slot", "core", "small"),
    Fault("list memory", "a list of a batch is the newest one behind its first vector",
          "hw/sequencer/list_memory.py", "with m.If(~more):", "with m.If(1):", "core", "small"),
    Fault("sequencer", "a product of a batch has only the rows of one vector",
          "hw/sequencer/sequencer.py", "rows.eq(now.a << log2)", "rows.eq(now.a)",
          "core", "small"),
    Fault("fetching", "a pass that begins anywhere is fetched from the start of the program",
          "hw/sequencer/fetching.py", "reader.start.eq(Mux(pending, start, self.start))",
          "reader.start.eq(0)", "core", "small"),
    Fault("trit decoder", "trit 4 of an escape code is not zero", "hw/ternary/decoder.py",
          "~((may_escape & b2) | (p2 & p0))", "~(p2 & p0)", "engine", "wide"),
    Fault("lane", "a subtraction lacks the one that completes its negation", "hw/ternary/lanes.py",
          "Cat(self.negative, addend)", "Cat(C(0, 1), addend)", "engine", "narrow"),
    Fault("ternary engine", "a plane weighs twice the one before it", "hw/ternary/walker.py",
          "tripler.addend.eq(operand << 1)", "tripler.addend.eq(operand)",
          "engine", "narrow"),
    Fault("ternary engine", "two accumulators do not pause", "hw/ternary/walker.py",
          " & ~(step & round_last & two_slots)", "", "engine", "narrow"),
    Fault("ternary engine", "clearing does not read the page of zeros", "hw/ternary/walker.py",
          "others.eq(clearing | one_slot)", "others.eq(one_slot)", "engine", "narrow"),
    Fault("ternary engine", "the drain steps by one accumulator, not by the batch",
          "hw/ternary/walker.py", "Mux(reading & ~group.last, job.batch, 1)", "1",
          "engine", "narrow"),
    Fault("ternary engine", "results are issued without a place for them", "hw/ternary/walker.py",
          "read.eq(reading & self.room)", "read.eq(reading)", "engine", "narrow"),
    Fault("ternary engine", "the register of the only accumulator is not cleared between products",
          "hw/ternary/walker.py", "release.eq(~(one_slot & walking))", "release.eq(~one_slot)",
          "engine", "narrow"),
    Fault("walk by row", "a sum that met another lacks the carry of its lane's negation",
          "hw/ternary/row_tree.py", "Cat(taken[0], left)", "Cat(C(0, 1), left)",
          "engine", "narrow_rows"),
    Fault("walk by row", "planes from the third weigh as much as the first two",
          "hw/ternary/rows.py", "at.plane >= 2 * step if step else at.plane[0]",
          "0 if step else at.plane[0]", "engine", "narrow_rows"),
    Fault("walk by row", "a row begins with the sum of the one before it", "hw/ternary/rows.py",
          "adder.gate.eq(~at.first)", "adder.gate.eq(1)", "engine", "narrow_rows"),
    Fault("walk by row", "an activation is written to its neighbours too", "hw/ternary/rows.py",
          "Mux(self.i.p.all, -1, 1 << index[:field_bits])", "-1", "engine", "narrow_rows"),
    Fault("walk by row", "results by column overtake those by row", "hw/ternary/walker.py",
          "with m.If(settling & ~self.rows_under_way):", "with m.If(settling):",
          "engine", "narrow_rows"),
    Fault("walk by row", "rows go on without room for their results", "hw/ternary/walker.py",
          " & ~(by_row & ~self.room))", ")", "engine", "narrow_rows"),
    Fault("walk by row", "products of no row go on without room for their last transfers",
          "hw/ternary/walker.py", "idle & pending & (~next_by_row | self.room)", "idle & pending",
          "engine", "narrow_rows"),
    Fault("ECP5 walk by row", "the carry cells lack the one that completes a negation",
          "hw/ternary/carry.py", "CARRY_IN_BOTH = 0x0008", "CARRY_IN_BOTH = 0x0000",
          "engine", "ecp5_rows"),
    Fault("ECP5 lane", "the carry cells lack the one that completes a negation",
          "hw/ternary/carry.py", "CARRY_IN = 0x000A", "CARRY_IN = 0x0000", "engine", "ecp5"),
    Fault("lmul", "the carry of an odd offset is not taken back", "hw/lmul/lmul.py",
          "(at.total - (constant + carry))", "(at.total - constant)", "lmul", "formats"),
    Fault("lmul", "a result below the smallest normal number is no zero", "hw/lmul/product.py",
          "zero=at.zero | ~at.normal.any()", "zero=at.zero", "lmul", "formats"),
    Fault("lmul", "infinity times zero is infinity", "hw/lmul/product.py",
          "nan=at.nan.any() | (at.special & at.zero))", "nan=at.nan.any())", "lmul", "formats"),
    Fault("lmul", "the pipeline does not wait for o.ready", "hw/lmul/lmul.py",
          "enable.eq(self.o.ready | ~self.o.valid)", "enable.eq(1)", "lmul", "formats"),
    Fault("exact multiplier", "ties round up, not to even", "hw/lmul/exact.py",
          "up = at.half & (at.rest | at.fraction[0])", "up = at.half", "lmul", "variants"),
    Fault("lmul dot product", "a negative term lacks the one that completes its negation",
          "hw/lmul/dot.py", "Cat(at.sign, base)", "Cat(C(0, 1), base)", "lmul_dot", "units"),
    Fault("lmul dot product", "the sum is not cleared between dot products", "hw/lmul/dot.py",
          "first.eq(at.last)", "first.eq(0)", "lmul_dot", "units"),
    Fault("lmul dot product", "a product above the bound goes unnoticed", "hw/lmul/dot.py",
          "nan=at.nan | (at.shift[-1] & ~at.nothing)", "nan=at.nan", "lmul_dot", "units"),
    Fault("lmul dot product", "the rest below the half does not count in rounding",
          "hw/lmul/dot.py", "(at.magnitude[:rest - 1].any() | at.magnitude[rest])",
          "at.magnitude[rest]", "lmul_dot", "units"),
    Fault("attention", "a score takes the negation of only one of its negative terms",
          "hw/attention/unit.py", "for k, sign in enumerate(signs[len(sums):]):",
          "for k, sign in enumerate([C(0)] * len(signs[len(sums):])):", "attention", "wide"),
    Fault("attention", "a score that is out of range wraps around", "hw/attention/unit.py",
          "fits = beyond.all() | ~beyond.any()", "fits = C(1)", "attention", "wide"),
    Fault("attention", "the largest score of the sequence before still counts",
          "hw/attention/unit.py", "own & (rounded.first_token | (scores[slot] > its.largest))",
          "own & (scores[slot] > its.largest)", "attention", "wide"),
    Fault("attention", "a sum begins with that of the mixture before", "hw/attention/unit.py",
          "Mux(at.first_token, 0, read.data)", "read.data", "attention", "wide"),
    Fault("attention", "a product above the bound is shifted as if it were below",
          "hw/attention/unit.py",
          "term=Mux(at.shift[-1], at.significand[-1].replicate(WINDOW), within)", "term=within",
          "attention", "wide"),
    Fault("attention", "weights are asked for without a place for them", "hw/attention/unit.py",
          " & (room != 0)", "", "attention", "narrow"),
    Fault("attention", "a step does not wait for its weights", "hw/attention/unit.py",
          "walk.ready.eq(~command.mix | queue.r_rdy)", "walk.ready.eq(1)", "attention", "wide"),
    Fault("attention", "a sum of weights that rounds up to a power of two does not count as one",
          "hw/attention/unit.py", "field = bf16.bias - out.octaves - rounded[-1]",
          "field = bf16.bias - out.octaves", "attention", "wide"),
    Fault("attention", "a transfer of the next command is taken as the format of this one",
          "hw/attention/unit.py", " & ~(source.valid & walk.last_row & last_token)", "",
          "attention", "wide"),
    Fault("attention", "subnormal numbers of e4m3 are not zero", "hw/attention/rows.py",
          "normal = exponent.any()", "normal = C(1)", "attention", "narrow"),
    Fault("mover", "a vector in two halves is appended as if it were one", "hw/vector/move.py",
          "m.d.sync += move.vector.eq(move.second)", "pass", "core", "attention"),
    Fault("cache writer", "the largest element of the sequence before still counts",
          "hw/attention/cache.py", "self.first | (field > own.data)", "field > own.data",
          "core", "attention"),
    Fault("cache writer", "e4m3 ties are rounded up, not to even", "hw/attention/cache.py",
          "((1 << (_DROP - 1)) - 1) + magnitude[_DROP]", "(1 << (_DROP - 1))",
          "core", "attention"),
    Fault("fetching", "keys are read before the newest was appended", "hw/sequencer/fetching.py",
          "with m.Case(Opcode.STORE, Opcode.APPEND):", "with m.Case(Opcode.STORE):",
          "core", "attention"),
    Fault("fetching", "the position of the pass before counts in the next one",
          "hw/sequencer/fetching.py", "reader.known.eq(ahead != 0)", "reader.known.eq(1)",
          "core", "attention"),
    Fault("core", "a product of the engine is drained as the mixture of attention", "hw/core.py",
          "with m.If(sequencer.mixing):", "with m.If(0):", "core", "attention"),
    Fault("decoder", "the bytes of an e4m3 vector at each position are those of bf16",
          "hw/sequencer/decoder.py", "(at.function == Function.E4M3), elements,",
          "C(0), elements,", "sequencer", "attention"),
    Fault("gearbox", "the next word begins at the granules of the current one",
          "hw/ternary/gearbox.py", "granules[(j + w) % p]", "granules[j % p]", "gearbox", "all"),
    Fault("gearbox", "padding counts as the beginning of the next product",
          "hw/ternary/gearbox.py", "with m.If(self.i.p.last):", "with m.If(0):", "gearbox", "all"),
    Fault("gearbox", "a word that ends in the following row does not end the product",
          "hw/ternary/gearbox.py", "following.last & (stop[:levels] == following.end)", "0",
          "gearbox", "all"),
    Fault("gearbox", "a full queue takes more", "hw/ternary/gearbox.py",
          "self.room.eq(reserved != fetched)", "self.room.eq(1)", "gearbox", "all"),
    Fault("frames", "a zero follows a full COBS block too", "hw/link/frames.py",
          "zero_due.eq(byte != 255)", "zero_due.eq(1)", "link", "parts"),
    Fault("frames", "the CRC of a frame is not checked", "hw/link/frames.py",
          "(block_left == 0) & crc.match_detected", "(block_left == 0)", "link", "parts"),
    Fault("frames", "what is left of a frame that began during a delivery counts as a frame",
          "hw/link/frames.py", "synchronized.eq(0)", "synchronized.eq(1)", "link", "parts"),
    Fault("UART", "bits are sampled at their end", "hw/link/uart.py",
          "timer.eq(self.divisor // 2 - 1)", "timer.eq(self.divisor - 1)", "link", "parts"),
    Fault("link target", "a repeated request is executed again", "hw/link/target.py",
          "repeated.eq(answered & (self.i.p.data == sequence))", "repeated.eq(0)",
          "board", "small"),
    Fault("link target", "nothing ends a request that waits for the engine",
          "hw/link/target.py", "expired.eq(silence == self.watchdog_cycles - 1)",
          "expired.eq(0)", "board", "small"),
    Fault("link target", "results are not sign-extended", "hw/link/target.py",
          "sign = leaf[-1] if leaf.shape().signed else Const(0)", "sign = Const(0)",
          "board", "small"),
    Fault("board system", "a reset leaves old entries in the queue", "hw/boards/system.py",
          "reset(entries)", "entries", "board", "small"),
    Fault("board system", "a reset leaves results of the pass that it cuts off",
          "hw/boards/system.py", "m.submodules[name] = reset(unit)",
          'm.submodules[name] = unit if name == "queue" else reset(unit)', "core_board", "small"),
    Fault("link target", "a core that is busy is written to and read", "hw/link/target.py",
          "is_one_of(idle) & self.busy", "0", "core_board", "small"),
    Fault("link target", "more is read than a reply has room for", "hw/link/target.py",
          "is_one_of(asking) & (left == 0)", "0", "core_board", "small"),
    Fault("link target", "a token that is refused stops the counter of cycles",
          "hw/link/target.py", "timing.eq(timing & self.busy)", "timing.eq(0)",
          "core_board", "small"),
    Fault("answers", "a fault does not end the results", "hw/link/answers.py",
          "self.o.p.last.eq(~best.valid)", "self.o.p.last.eq(scale.valid)", "core_board", "small"),
    Fault("answers", "the exponent of a scale is the integer before it", "hw/link/answers.py",
          "scale.p.number, scale.p.exponent", "scale.p.number, best.p.value",
          "core_board", "small"),
    Fault("top k", "a later row goes before an equal integer", "hw/sequencer/top_k.py",
          "exceeds(found_value, inverted[k])", "(found_value + inverted[k] + 1)[-1]",
          "sequencer", "sixteen"),
    Fault("top k", "lanes beyond the rows compete", "hw/sequencer/top_k.py",
          "(final >= lane)", "(final >= 0)", "sequencer", "sixteen"),
    Fault("top k", "integers that the one just found leaves no place for are kept",
          "hw/sequencer/top_k.py", "candidates.eq(candidates & still)",
          "candidates.eq(candidates)", "sequencer", "sixteen"),
    Fault("list memory", "a list is overwritten while a product needs it",
          "hw/sequencer/list_memory.py", "Mux(newest, uses[0], uses[1]) == 0", "1",
          "sequencer", "sixteen"),
    Fault("list memory", "a product takes the list that is the newest when it is walked",
          "hw/sequencer/list_memory.py", "buffer.eq(product.buffer)", "buffer.eq(newest)",
          "sequencer", "sixteen"),
    Fault("list memory", "a tile goes on where the one before it ended",
          "hw/sequencer/list_memory.py", "Mux(goes_on, newest_tile.last + 1, 0)",
          "newest_tile.last + 1", "sequencer", "sixteen"),
    Fault("list memory", "entries that were looked up belong to the tile that is walked",
          "hw/sequencer/list_memory.py", "Cat(read_port.data.index, looked_up_tile)",
          "Cat(read_port.data.index, tile.tile)", "sequencer", "sixteen"),
    Fault("selector", "all that are equal to the bound are kept", "hw/sparse/select.py",
          "(~tie | (missing != 0))", "1", "select", "two"),
    Fault("selector", "the score has the magnitude once", "hw/sparse/select.py",
          "Mux(one & command.largest, 1, at.magnitude)", "C(1, MAGNITUDE_BITS)", "select", "two"),
    Fault("selector", "a norm is displaced while the output waits", "hw/sparse/select.py",
          "Mux(waits, waiting, self.read.data[at.index[:lanes]])",
          "self.read.data[at.index[:lanes]]", "select", "two"),
    Fault("selector", "scores behind the last one count", "hw/sparse/select.py",
          "(whole | tail[lane])", "1", "select", "two"),
    Fault("selector", "bins are not cleared between passes", "hw/sparse/select.py",
          "Mux(scanning, 0, read.data + 1)", "read.data + 1", "select", "two"),
    Fault("selector", "passes go on though all that have the digits are kept",
          "hw/sparse/select.py", "found & ~exact & (", "found & (", "select", "two"),
    Fault("selector", "columns without weights are kept", "hw/sparse/select.py",
          "~at.end & at.score.any()", "~at.end", "select", "two"),
    Fault("selector", "bins keep what they held at a reset", "hw/sparse/select.py",
          "scanning | counted", "(scanning & ~clearing) | counted", "select", "two"),
    Fault("decoder", "a matrix may end a transfer behind the memory", "hw/sequencer/decoder.py",
          "| (end > config.memory_bytes)", "| (end > config.memory_bytes + config.port_bytes)",
          "sequencer", "one"),
    Fault("decoder", "of several faults the last one counts", "hw/sequencer/decoder.py",
          "reversed(Fault)", "Fault", "sequencer", "one"),
    Fault("decoder", "the second vector of a function of one is checked",
          "hw/sequencer/decoder.py",
          "Cat(at.function == function for function in _OF_TWO).any()", "1",
          "sequencer", "one"),
    Fault("sequencer", "the second scalar register is the first one again",
          "hw/sequencer/sequencer.py", "Mux(second, now.b, now.a)", "now.a",
          "sequencer", "sixteen"),
    Fault("sequencer", "more rows are taken than a product has left", "hw/sequencer/sequencer.py",
          "(left.rows > now.count)", "1", "sequencer", "sixteen"),
    Fault("sequencer", "a product is done with its first rows", "hw/sequencer/sequencer.py",
          "known.eq(~whole)", "known.eq(0)", "sequencer", "sixteen"),
    Fault("sequencer", "a program without STOP begins again at its start",
          "hw/sequencer/program.py", "Mux(beyond, 0, read.data)", "read.data",
          "sequencer", "sixteen"),
    Fault("fetching", "a STORE is passed before it was executed", "hw/sequencer/fetching.py",
          "reader.o.ready.eq(stores != 0)", "reader.o.ready.eq(1)", "core", "small"),
    Fault("fetching", "columns of a token's list are not asked for", "hw/sequencer/fetching.py",
          "asked.eq(given.function != Function.DENSE)",
          "asked.eq((given.function != Function.DENSE) & (given.opcode == Opcode.PACK))",
          "core", "small"),
    Fault("core", "fetching is not told where a list ends", "hw/core.py",
          "columns.p.end.eq(end)", "columns.p.end.eq(0)", "core", "small"),
    Fault("core", "a product is taken as if its list were the newest", "hw/core.py",
          "Cat(asked, rows).eq(queue.r_data)", "Cat(asked, rows).eq(Cat(newest, 0))",
          "core", "small"),
    Fault("core", "a DENSE list does not reach the walk by row", "hw/core.py",
          "codes.eq(gated | (~packs.p.sparse & (sequencer.batch.log2 == 0)))", "codes.eq(gated)",
          "core", "small"),
    Fault("core", "what a gated list leaves out stays in the walk by row", "hw/core.py",
          "left.eq((packs.p.words + ((1 << words) - 1)) >> words)", "left.eq(0)", "core", "small"),
    Fault("core", "scores are made of norms that are yet to be loaded", "hw/core.py",
          "listable = ~sequencer.loading", "listable = C(1)", "core", "small"),
    Fault("drain", "a product by row is written where nothing was listed", "hw/vector/move.py",
          "self.write.mask[lane].eq(~by_row | (row == lane))", "self.write.mask[lane].eq(1)",
          "core", "small"),
    Fault("drain", "rows of the next product are taken for the present one's", "hw/vector/move.py",
          "(unplaced != 0) &", "draining & by_row &", "core", "small"),
    Fault("drain", "a drain takes all rows of its product", "hw/vector/move.py",
          "Mux(command.by_row, self.i_results.p.last, command.words == 1)",
          "self.i_results.p.last", "core", "small"),
    Fault("drain", "a drain ends with its first word", "hw/vector/move.py",
          "self.done.eq(scaled.valid & scaled.ready & scaled.p.last)",
          "self.done.eq(scaled.valid & scaled.ready)",
          "core", "small"),
    Fault("mover", "parts of a stored word are all its first one", "hw/vector/move.py",
          "word.eq(word >> bits)", "word.eq(word)", "core", "small"),
    Fault("mover", "a loaded word lacks its last part", "hw/vector/move.py",
          "Cat(word, self.i_vector.p.data)[-parts * bits:]", "word", "core", "small"),
    Fault("block RAM memory", "a read replaces the one under way", "hw/memory/port.py",
          "reads.ready.eq((left == 0) | (lookup & (left == 1)))", "reads.ready.eq(1)",
          "memory", "all"),
    Fault("block RAM memory", "all slices of a row hold the bits of the first one",
          "hw/memory/port.py", "written.data[low:low + part]", "written.data[:part]",
          "memory", "all"),
    Fault("shared port", "the host's read does not wait for those of the core",
          "hw/memory/shared.py", "(awaited == 0)", "1", "memory", "all"),
    Fault("shared port", "a transfer of the host gets into a burst of the core",
          "hw/memory/shared.py", "~(core.writes.valid | inside)", "~core.writes.valid",
          "memory", "all"),
    Fault("AXI4", "a read crosses a page", "hw/memory/axi4.py", "rest.eq(left > room)",
          "rest.eq(0)", "memory", "all"),
    Fault("AXI4", "a written burst crosses a page", "hw/memory/axi4.py",
          "\n                      | writes.p.address[below:page].all()", "", "memory", "all"),
    Fault("AXI4", "a read does not wait for the writes before it", "hw/memory/axi4.py",
          "(left != 0) & ~writing &", "(left != 0) &", "memory", "all"),
    Fault("fetcher", "a read is sent though the queue has no room", "hw/memory/fetcher.py",
          "(free >= request.transfers)", "1", "memory", "all"),
    Fault("fetcher", "the bytes before a column are not dropped", "hw/memory/fetcher.py",
          "shift.eq(filled - low)", "shift.eq(filled)", "memory", "all"),
    Fault("fetcher", "what is left at the end of a list is not delivered",
          "hw/memory/fetcher.py", "Mux(finish, filled != 0,", "Mux(finish, 0,",
          "memory", "all"),
    Fault("fetcher", "a column beyond 255 is one below", "hw/memory/fetcher.py",
          "(pair << (2 * _DIGIT * k))", "(pair & 0)", "memory", "all"),
    Fault("bf16 adder", "bits that the smaller number loses are forgotten",
          "hw/vector/adder.py", "kept[0] | lost)",
          "kept[0])",
          "vector", "three"),
    Fault("bf16 adder", "a difference of zero keeps the sign of its first number",
          "hw/vector/adder.py", "sign=Mux(zero, at.negative, at.sign)",
          "sign=at.sign",
          "vector", "three"),
    Fault("vector functions", "the table begins one exponent late",
          "hw/vector/tables.py", "FIRST_EXPONENT = 118",
          "FIRST_EXPONENT = 120",
          "vector", "three"),
    Fault("vector functions", "half of a smallest normal number is subnormal, not zero",
          "hw/vector/lanes.py", "nothing=~exponent[1:].any()",
          "nothing=~exponent.any()",
          "vector", "three"),
    Fault("vector unit", "L-Mul products are written one cycle early",
          "hw/vector/unit.py", "multiply, valid[READ_LATENCY + PRODUCT_LATENCY]",
          "multiply, valid[READ_LATENCY + PRODUCT_LATENCY - 1]",
          "vector", "three"),
    Fault("vector unit", "the lanes stop when the last word was read",
          "hw/vector/unit.py", "m.d.sync += working.eq(busy)",
          "m.d.sync += working.eq(read)", "vector", "three"),
    Fault("vector unit", "squares of the first pass enter the sum of the norm",
          "hw/vector/unit.py", "squares.valid.eq(valid[READ_LATENCY + WIDE_LATENCY] & second)",
          "squares.valid.eq(valid[READ_LATENCY + WIDE_LATENCY])",
          "vector", "three"),
    Fault("vector unit", "the second pass of a norm begins while the first is in the lanes",
          "hw/vector/unit.py", "READ_LATENCY + max(WIDE_LATENCY, largest.latency - 1)",
          "READ_LATENCY + largest.latency - 1", "vector", "two"),
    Fault("vector unit", "the norm's sum is cut off, not rounded",
          "hw/vector/squares.py", "exponent).as_signed() + up)",
          "exponent).as_signed())",
          "vector", "three"),
    Fault("packer", "ties are rounded up, not to even",
          "hw/vector/packer.py", "(shifted[:_BITS].any() | shifted[_BITS + 1])",
          "1",
          "vector", "three"),
    Fault("packer", "a largest element that rounds up to 128 does not raise the scale",
          "hw/vector/packer.py", "top.eq((magnitude + 1) >> _BITS)",
          "top.eq(magnitude >> _BITS)",
          "vector", "three"),
    Fault("packer", "a sparse list keeps its zeros",
          "hw/vector/packer.py", "~command.sparse | has_code",
          "C(1) | has_code",
          "vector", "three"),
    Fault("packer", "half a unit above zero is left out with half a unit",
          "hw/vector/packer.py", "Cat(fraction.any() | normal, exponent)",
          "Cat(normal, exponent)",
          "vector", "three"),
    Fault("packer", "a word that had to wait is lost",
          "hw/vector/packer.py", "(coming.all() & (waits | ~load))",
          "(coming.all() & waits)",
          "vector", "three"),
    Fault("scale unit", "the last digit's negation lacks its carry",
          "hw/vector/scale.py", "rows.append(Cat(C(0, len(significand) - 2), carry,",
          "rows.append(Cat(C(0, len(significand) - 2), C(0, 1),",
          "vector", "three"),
    Fault("scale unit", "the bit above 2 is not part of what is rounded off",
          "hw/vector/scale.py", "at.product[:rest - 1].any() | (above & at.product[rest - 1])",
          "at.product[:rest - 1].any()",
          "vector", "three"),
    Fault("largest magnitude", "the largest magnitude of a word misses every second lane",
          "hw/vector/largest.py", "Mux(pair[0] > pair[-1], pair[0], pair[-1])",
          "pair[0]",
          "vector", "three"),
)


def try_fault(fault: Fault, simulator: str = "verilator") -> FaultResult:
    """Plant ``fault`` in a copy of the project and run its bench there.

    Raises
    ------
    ValueError
        If the text to replace does not occur exactly once.
    """
    with tempfile.TemporaryDirectory() as temporary:
        copy = pathlib.Path(temporary)
        for folder in ("hw", "sim", "host"):
            shutil.copytree(ROOT / folder, copy / folder,
                            ignore=shutil.ignore_patterns("__pycache__"))
        target = copy / fault.path
        text = target.read_text()
        if text.count(fault.old) != 1:
            raise ValueError(f"{fault.path}: the text of fault '{fault.fault}' must occur once, "
                             f"not {text.count(fault.old)} times")
        target.write_text(text.replace(fault.old, fault.new))
        done = subprocess.run(
            [sys.executable, "-m", "sim", "run", fault.bench, "--case", fault.case,
             "--simulator", simulator], cwd=copy, text=True, check=False,
            env=os.environ | {"COCOTB_MAX_FAILURES": "1"},      # the first failure is enough
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    failed = sorted(set(re.findall(r"\*\* sim\.bench\.bench_\w+\.(\w+)\S*\s+FAIL", done.stdout)))
    # A copy that does not even run is no proof that the bench looks.
    caught = done.returncode == 1 and bool(failed)
    return FaultResult(fault, caught, f"bench_{fault.bench}: {', '.join(failed)}" if caught else "")
