"""A token's energy: what is counted, what is added up, and the claims; the recorded operands."""

import dataclasses
import importlib.util
from pathlib import Path

import numpy as np
import pytest

from host.cli.options import DEFAULT_MODEL, read_texts
from host.compiler.compile import compile_model
from host.measure.energy import (
    ARITHMETICS,
    Operations,
    claim_summary,
    count_operations,
    matrix_weights,
    token_claims,
    token_parts,
    unit_claims,
)
from host.measure.operands import record_operands
from host.models.examples import tiny_model
from host.models.registry import read_model
from host.text.tokenizer import open_tokenizer
from hw.config import AcceleratorConfig
from hw.energy.operands import recorded
from hw.energy.units import UNITS
from hw.records import read_record

CORPUS = Path(__file__).parents[2] / "data" / "corpus"
MODEL = tiny_model(width=64, ffn_width=128, layers=2)


def test_weights():
    """Four matrices of the mixer and three of the FFN in each of two layers, and the head."""
    layer = 4 * 64 * 64 + 3 * 64 * 128
    assert matrix_weights(MODEL) == (2 * layer + 64 * MODEL.vocab, 64)


def test_counts_of_a_dense_token():
    config = AcceleratorConfig()
    image = compile_model(MODEL, config)
    found = count_operations(image, [1, 2, 3])
    multiplied, embedded = matrix_weights(MODEL)
    planes = next(instruction.b for instruction, note in zip(
        image.program.instructions, image.program.notes, strict=True) if note == "head: head")
    head = 64 * MODEL.vocab
    assert found.trits == multiplied - head + planes * (head + embedded)
    # A layer quantizes x twice, o, and the FFN's hidden vector.
    assert found.quantized == 2 * (3 * 64 + 128) + 64
    assert found.selected == 0
    assert found.products == 2 * (2 * 64 + 128)         # z (c - h), h g, and up times gate
    assert found.squares == 2 * 3 * 64 + 64             # |x|, |h|, |x|
    assert found.sums == 2 * 5 * 64                     # a, c - h, h, and x twice
    assert found.scaled == 2 * (5 * 64 + 2 * 128) + 64


def test_a_sparse_token_has_fewer_trits_and_the_same_vectors():
    dense, sparse = (count_operations(compile_model(MODEL, AcceleratorConfig(), sparse=sparse),
                                      [1, 2, 3]) for sparse in (False, True))
    assert sparse.trits < dense.trits
    assert (sparse.products, sparse.sums) == (dense.products, dense.sums)


OPERATIONS = Operations(trits=500, quantized=20, selected=10, products=5, squares=4, sums=3,
                        scaled=2, loaded=7, elements=100)
ENERGIES = dict.fromkeys(UNITS, 2.0)


def test_parts_of_a_ternary_token():
    parts = {part: (count, energy, kind) for part, count, energy, kind in token_parts(
        ARITHMETICS["ternary, masked"], OPERATIONS, (1000, 50), ENERGIES)}
    assert parts["matrices"] == (500, 1000.0, "measured, counted")
    assert parts["decoding of trits"] == (100, 200.0, "measured, counted")
    assert parts["selection"] == (10, 20.0, "measured, counted")
    # 100 bytes of trits and 7 numbers, 160 pJ a byte; 3 bytes of each sum read and written.
    assert parts["weights from DRAM"] == (114, 114 * 160.0, "published, counted")
    assert parts["sums in SRAM"] == (3000, 3000 * 1.25, "published, counted")
    assert parts["vectors in SRAM"] == (200, 250.0, "published, counted")


def test_parts_of_an_exact_token():
    parts = {part: count for part, count, _, _ in token_parts(
        ARITHMETICS["exact fp16"], OPERATIONS, (1000, 50), ENERGIES)}
    assert parts == {"matrices": 1000, "element-wise products": 5, "norms": 4,
                     "element-wise sums": 3, "weights from DRAM": 2114, "sums in SRAM": 8000,
                     "vectors in SRAM": 200}


def test_arithmetics_name_units():
    for arithmetic in ARITHMETICS.values():
        assert set(arithmetic.units) <= set(UNITS)


def test_claims():
    def row(name, logic, everything, **more):
        return {"name": name, "library": "l", "operands": "random", "best": True,
                "picojoules_logic": logic, "picojoules": everything} | more

    rows = [row(name, 1.0, 2.0) for name in UNITS]
    rows += [row("exact-fp32", 100.0, 110.0), row("lmul-fp32", 5.0, 22.0),
             row("lmul-fp32", 1e9, 1e9, best=False)]
    found = {(claim["claim"], claim["format"]): claim for claim in unit_claims(rows)}
    claim = found["L-Mul instead of a product", "fp32"]
    assert (claim["saved_logic_percent"], claim["ratio"], claim["saved_percent"]) == (95, 5, 80)
    assert found["integer sum instead of a product", "fp32"]["ratio_logic"] == 100

    line, = (line for line in claim_summary([*found.values()])
             if line["condition"] == "fp32, with registers and clock")
    assert (line["claimed"], line["measured"]) == ("95 %", "80 %")

    tokens = [{"model": "m", "library": "l", "arithmetic": name, "kind": kind, "picojoules": energy}
              for name, kind, energy in (
                  ("exact fp16", "measured, counted", 50), ("exact fp16", "published, counted", 50),
                  ("ternary", "measured, counted", 5), ("ternary", "published, counted", 20))]
    claim, = token_claims(tokens)
    assert (claim["claim"], claim["ratio_measured"], claim["ratio"]) == ("ternary weights", 10, 4)


def test_the_records_belong_together():
    """The claims are those that follow from the records of energies."""
    claims = read_record("energy_claims")["rows"]
    made = [*unit_claims(read_record("energy")["rows"]),
            *token_claims(read_record("token_energy")["rows"])]
    made = [*claim_summary(made), *made]
    assert [{key: value for key, value in claim.items() if key != "sources"}
            for claim in claims] == made


@pytest.mark.skipif(importlib.util.find_spec("matplotlib") is None,
                    reason="matplotlib is not installed; pip install -e '.[plot]'")
def test_picture(tmp_path):
    from host.measure.energy_plot import plot_token_energy

    rows = [row for row in read_record("token_energy")["rows"] if row["model"] == "tally-stories"]
    paths = [tmp_path / name for name in ("a.svg", "b.svg")]
    for path in paths:
        plot_token_energy(rows, path)
    assert paths[0].read_bytes() == paths[1].read_bytes()
    assert b"</svg>" in paths[0].read_bytes()


@pytest.mark.slow
def test_recorded_operands():
    """What is recorded is what the golden machine computes."""
    model = read_model(DEFAULT_MODEL)
    text = read_texts(CORPUS, "heldout", "held-out text")[0]
    tokens = [model.vocabulary.start, *open_tokenizer(model.vocabulary).encode(text)][:32]
    made, kept = record_operands(model, tokens, 8), recorded()
    for field in dataclasses.fields(made):
        found, expected = getattr(made, field.name), getattr(kept, field.name)
        # The exact float32 model is not the same to the last bit on every machine.
        if found.dtype == np.float32:
            np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-3)
        else:
            np.testing.assert_array_equal(found, expected)
