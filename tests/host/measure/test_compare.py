"""Comparison of a transformer with its float reference, and transformers on the command line."""

import dataclasses
import json
import math

import numpy as np
import pytest

from host.cli import main as cli
from host.files.errors import ModelFileError
from host.measure.compare import (
    REFERENCE,
    Text,
    Variant,
    compare,
    read_llama,
    stored_bytes,
    variants,
)
from host.models.examples import llama_gguf, llama_tensors, tiny_model
from host.models.mmfreelm import write_model
from sim.golden.arithmetic import ARITHMETICS
from sim.golden.evaluate import ExactProducts, GoldenLM, model_matrices
from sim.golden.graph import Kind
from tests.host.corpus_examples import write_corpus

DOCUMENTS = [f"the story number {n}: the end of the {n % 7} bears" for n in range(6)]


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "example.gguf"
    path.write_bytes(llama_gguf(llama_tensors(), context=64))
    return path


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return write_corpus(tmp_path_factory.mktemp("corpus"), DOCUMENTS, held_out=lambda n: True)


def distributions(model, arithmetic, text):
    lm = GoldenLM(model, ARITHMETICS[arithmetic], ExactProducts(model_matrices(model)))
    logits = lm.logits(lm.forward(text.tokens[:, :-1], lm.start(len(text.tokens))))
    probabilities = np.exp(logits - logits.max(axis=1, keepdims=True), dtype=np.float64)
    return probabilities / probabilities.sum(axis=1, keepdims=True)


def test_figures(path):
    """Bits, agreement and divergence by their definitions, in float64."""
    model = read_llama(path)
    text = Text.read(model, DOCUMENTS, 3, 20)
    assert text.tokens.shape == (3, 21)
    assert (text.tokens[:, 0] == model.vocabulary.start).all()
    variant = Variant("lmul", 4, cache="e4m3")
    reference, found = compare(model, text, [variant])
    p = distributions(model.reference(), "float", text)
    q = distributions(dataclasses.replace(model, planes=4, cache="e4m3"), "lmul", text)
    targets = text.tokens[:, 1:].reshape(-1)
    for one, distribution in ((reference, p), (found, q)):
        bits = -np.log2(distribution[np.arange(60), targets])
        np.testing.assert_allclose(one.bits, bits, rtol=1e-4, atol=1e-4)
        assert one.bits_per_byte == pytest.approx(bits.sum() / text.bytes, rel=1e-5)
    middle = (p + q) / 2
    divergence = (p * np.log2(p / middle) + q * np.log2(q / middle)).sum(axis=1) / 2
    assert found.jsd == pytest.approx(divergence.mean(), rel=1e-3)
    assert found.top1_agreement == (p.argmax(axis=1) == q.argmax(axis=1)).mean()
    assert reference.jsd == pytest.approx(0, abs=1e-6)
    assert reference.top1_agreement == 1
    cost, error = found.cost(reference)
    more = found.bits - reference.bits
    assert cost == pytest.approx(100 * (found.bits.sum() / reference.bits.sum() - 1), rel=1e-6)
    assert error == pytest.approx(100 * more.std() * math.sqrt(60) / reference.bits.sum())


def test_bytes_of_a_text(path):
    model = read_llama(path)
    text = Text.read(model, DOCUMENTS, 2, 12)
    # Of "the story numb", "the" is one token, and every other letter.
    assert text.bytes == 28


def test_what_is_too_long(path):
    model = read_llama(path)
    with pytest.raises(ValueError, match=r"^Tokens of a document must be at most 64, the model's "
                                         r"context, not 65$"):
        Text.read(model, DOCUMENTS, 1, 65)
    with pytest.raises(ValueError, match=r"^Documents of 20 tokens must be 7, not 6$"):
        Text.read(model, DOCUMENTS, 7, 20)


def test_stored_bytes(path):
    """1.6 bits a trit, planes by the largest integer, two bytes a constant."""
    model = read_llama(path)
    trits = constants = 0
    for step in model.network():
        if step.matrix is not None:
            largest = int(np.abs(step.matrix.weights).max())
            trits += step.matrix.weights.size * math.ceil(math.log(2 * largest + 1, 3) - 1e-9)
        elif step.constant is not None:
            constants += step.constant.size
    assert stored_bytes(model) == round(trits / 5 + 2 * constants)
    assert sum(step.kind is Kind.POSITION for step in model.network()) == 2


def test_variants_cover_what_the_table_wants():
    found = variants()
    assert len(set(found)) == len(found)
    assert REFERENCE not in found
    for cache in ("bf16", "e4m3"):
        for arithmetic in ("exact", "lmul_attention", "lmul"):
            assert Variant(arithmetic, 5, cache=cache) in found
    assert {variant.planes for variant in found if variant.arithmetic == "lmul"} == {3, 4, 5, 6}


class TestCommands:
    def test_compare(self, capsys, tmp_path, path, corpus):
        result = tmp_path / "result.json"
        assert cli.main(["compare", str(path), "--corpus", str(corpus), "--documents", "2",
                         "--tokens", "8", "--json", str(result)]) == 0
        out = capsys.readouterr().out
        assert "example: 16 tokens of 2 held-out documents" in out
        rows = json.loads(result.read_text())["rows"]
        assert len(rows) == len(variants()) + 1
        assert rows[0] | {"bytes": None, "planes": None, "kv": "float32"} == rows[0]
        attention, = (row for row in rows if row["arithmetic"] == "lmul_attention"
                      and row["kv"] == "bf16")
        exact, = (row for row in rows if row["arithmetic"] == "exact" and row["kv"] == "bf16")
        assert attention["attention_cost_percent"] == pytest.approx(
            100 * (attention["bits_per_byte"] / exact["bits_per_byte"] - 1), abs=0.01)

    def test_other_family(self, tmp_path):
        write_model(tmp_path / "tiny.gguf", tiny_model())
        with pytest.raises(ModelFileError, match=r"must be of the Llama family to be compared"):
            read_llama(tmp_path / "tiny.gguf")
