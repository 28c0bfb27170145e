"""WINA's rotation: the model computes the same, and the mask chooses best."""

import dataclasses
import itertools
import re
from pathlib import Path

import numpy as np
import pytest

from host.compress.rotation import (
    MATRICES,
    Llama,
    LlamaLayer,
    fold_gains,
    forward,
    linear_products,
    read_llama2c,
    rotate,
)
from host.files.errors import ModelFileError

MODELS = Path(__file__).parents[2] / "data" / "models"


def random_llama(*, tied=True, width=32, depth=3, heads=8, kv_heads=2, ffn=44, vocabulary=50):
    """Make a model with gains that are not 1 and embeddings whose mean is not 0."""
    rng = np.random.default_rng(12)

    def matrix(rows, columns):
        return rng.normal(size=(rows, columns)) / np.sqrt(columns)

    def gain():
        return rng.uniform(0.3, 2, width)

    kv_width = width // heads * kv_heads
    layers = tuple(LlamaLayer(
        mix_gain=gain(), query=3 * matrix(width, width), key=3 * matrix(kv_width, width),
        value=matrix(kv_width, width), output=matrix(width, width), ffn_gain=gain(),
        gate=matrix(ffn, width), up=matrix(ffn, width), down=matrix(width, ffn))
        for _ in range(depth))
    embedding = rng.normal(0.4, 1, (vocabulary, width))
    head = embedding if tied else rng.normal(size=(vocabulary, width))
    return Llama(embedding, head, layers, gain(), heads, kv_heads)


TOKENS = np.random.default_rng(13).integers(0, 50, 20)


def by_hand(model, tokens):
    """Logits of the last token, by loops over heads and positions."""
    stream = [model.embedding[token] for token in tokens]
    width = model.embedding.shape[1] // model.heads

    def norm(x, gain):
        return x / np.sqrt(np.mean(x * x) + model.epsilon) * gain

    def turned(vector, position):
        result = vector.copy()
        for pair in range(width // 2):
            angle = position / model.base ** (2 * pair / width)
            a, b = vector[2 * pair:2 * pair + 2]
            result[2 * pair] = a * np.cos(angle) - b * np.sin(angle)
            result[2 * pair + 1] = a * np.sin(angle) + b * np.cos(angle)
        return result

    for layer in model.layers:
        inputs = [norm(x, layer.mix_gain) for x in stream]
        after = []
        for position, u in enumerate(inputs):
            parts = []
            for head in range(model.heads):
                rows = slice(head * width, (head + 1) * width)
                shared = head * model.kv_heads // model.heads
                kv_rows = slice(shared * width, (shared + 1) * width)
                query = turned((layer.query @ u)[rows], position)
                seen = inputs[:position + 1]
                weights = np.exp([query @ turned((layer.key @ v)[kv_rows], place) / np.sqrt(width)
                                  for place, v in enumerate(seen)])
                parts.append(sum(weight * (layer.value @ v)[kv_rows] for weight, v
                                 in zip(weights, seen, strict=True)) / weights.sum())
            after.append(stream[position] + layer.output @ np.concatenate(parts))
        stream = []
        for x in after:
            u = norm(x, layer.ffn_gain)
            opened = layer.gate @ u
            stream.append(x + layer.down @ (opened / (1 + np.exp(-opened)) * (layer.up @ u)))
    return model.head @ norm(stream[-1], model.gain)


class TestForward:
    def test_against_loops(self):
        model = random_llama(tied=False)
        np.testing.assert_allclose(forward(model, TOKENS)[-1], by_hand(model, TOKENS), rtol=1e-10,
                                   atol=1e-10)

    def test_mask_sees_every_list(self):
        model = random_llama()
        seen = []

        def mask(layer, name, x):
            seen.append((layer, name, x.shape))
            return x

        forward(model, TOKENS, mask)
        assert seen == [(layer, name, (20, 44 if name == "ffn_hidden" else 32))
                        for layer in range(3) for name in MATRICES]


class TestRotation:
    @pytest.mark.parametrize("tied", [True, False])
    @pytest.mark.parametrize("kv_heads", [2, 8])
    def test_computes_the_same(self, tied, kv_heads):
        model = random_llama(tied=tied, kv_heads=kv_heads)
        before = model.embedding.copy()
        expected = forward(model, TOKENS)
        for changed in (fold_gains(model), rotate(model)):
            assert np.abs(forward(changed, TOKENS) - expected).max() < 1e-10
            assert changed.head is not changed.embedding
        # Tied heads are copied, not changed.
        np.testing.assert_array_equal(model.embedding, before)
        assert (model.head is model.embedding) == tied

    def test_columns_are_orthogonal(self):
        for layer in rotate(random_llama()).layers:
            for matrix in (layer.key, layer.gate):
                gram = matrix.T @ matrix
                np.testing.assert_allclose(gram, np.diag(np.diag(gram)), atol=1e-12)
            gram = layer.up.T @ layer.up
            assert np.abs(gram - np.diag(np.diag(gram))).max() > 0.01

    def test_shared_heads_leave_columns_empty(self):
        """Key matrices of fewer rows than columns: what exceeds their rank becomes zero."""
        for layer in rotate(random_llama()).layers:
            norms = np.linalg.norm(layer.key, axis=0)
            assert (norms[:8] > 1e-3).all()
            assert (norms[8:] < 1e-12).all()

    def test_the_mask_is_the_best_there_is(self):
        """Of all masks that keep 3 of 8 activations, the largest scores have the smallest error."""
        layer = rotate(random_llama(width=8, heads=2, kv_heads=2, ffn=12)).layers[1]
        rng = np.random.default_rng(14)
        for matrix in (layer.key, layer.gate):
            for _ in range(20):
                x = rng.normal(size=8)
                best = min(itertools.combinations(range(8), 3), key=lambda kept: np.linalg.norm(
                    matrix @ np.where(np.isin(np.arange(8), kept), 0, x)))
                scores = np.abs(x) * np.linalg.norm(matrix, axis=0)
                assert set(best) == set(np.argsort(scores)[-3:].tolist())

    def test_rotations_are_counted(self):
        model = random_llama()
        layer = 32 * 32 * 2 + 2 * 8 * 32 + 3 * 44 * 32
        assert linear_products(model) == 3 * layer
        # The last layer's second one is part of the head.
        assert linear_products(rotate(model)) == 3 * layer + (2 * 3 - 1) * 32 * 32
        kept = {"mix_in": 0.5, "mix_out": 1.0, "ffn_in": 0.25, "ffn_hidden": 0.0}
        assert linear_products(rotate(model), kept) == 3 * (
            0.5 * (32 * 32 + 2 * 8 * 32) + 32 * 32 + 0.25 * 2 * 44 * 32) + 5 * 32 * 32


def words(path):
    """Texts of the tokens of a llama2.c tokenizer."""
    data, at, found = path.read_bytes(), 4, []
    while at < len(data):
        size = int.from_bytes(data[at + 4:at + 8], "little")
        found.append(data[at + 8:at + 8 + size].decode())
        at += 8 + size
    return found


@pytest.mark.parametrize("change", [lambda model: model, rotate])
def test_a_trained_model_writes_the_same(change):
    model = change(read_llama2c(MODELS / "stories260K.bin"))
    tokens = [1]
    while len(tokens) < 40:
        tokens.append(int(forward(model, np.array(tokens))[-1].argmax()))
    text = "".join(words(MODELS / "tok512.bin")[token] for token in tokens[1:])
    assert text.strip().startswith("Once upon a time, there was a little girl named Lily. She ")


def write_llama2c(path, model, *, tied, context=16):
    names = ("mix_gain", "query", "key", "value", "output", "ffn_gain", "gate", "down", "up")
    arrays = [model.embedding, *(np.stack([getattr(layer, name) for layer in model.layers])
                                 for name in names), model.gain, np.zeros((2, context, 2))]
    vocabulary = len(model.embedding)
    header = [32, 44, 3, model.heads, model.kv_heads, vocabulary if tied else -vocabulary, context]
    data = np.array(header, "<i4").tobytes() + b"".join(
        array.astype("<f4").tobytes() for array in [*arrays, *([] if tied else [model.head])])
    path.write_bytes(data)


class TestFile:
    @pytest.mark.parametrize("tied", [True, False])
    def test_round_trip(self, tmp_path, tied):
        model = random_llama(tied=tied)
        write_llama2c(tmp_path / "model.bin", model, tied=tied)
        found = read_llama2c(tmp_path / "model.bin")
        assert (found.heads, found.kv_heads) == (8, 2)
        assert (found.head is found.embedding) == tied
        for field in dataclasses.fields(LlamaLayer)[:9]:
            for layer, expected in zip(found.layers, model.layers, strict=True):
                np.testing.assert_array_equal(getattr(layer, field.name),
                                              getattr(expected, field.name).astype(np.float32))
        np.testing.assert_array_equal(found.head, model.head.astype(np.float32))

    def test_mistakes(self, tmp_path):
        path = tmp_path / "model.bin"
        write_llama2c(path, random_llama(), tied=True)
        data = path.read_bytes()
        for content, message in (
                (data[:20], f"neither a GGUF file nor one of llama2.c: it begins with "
                            f"{data[:4]!r} and has 20 bytes"),
                (data[:-4], f"must have {len(data)} bytes, as its header says, not "
                            f"{len(data) - 4}"),
                (bytes(28), "this is zeros: the file was not written, or not downloaded")):
            path.write_bytes(content)
            with pytest.raises(ModelFileError, match=f"^{re.escape(f'{path}: {message}')}$"):
                read_llama2c(path)
        with pytest.raises(ModelFileError, match=r"nothing: No such file or directory$"):
            read_llama2c(tmp_path / "nothing")
