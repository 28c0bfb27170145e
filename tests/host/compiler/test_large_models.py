"""Large models: laid out once, in little memory, and kept for the next start."""

import argparse
import dataclasses
import io
import os
import pickle
import re
import tracemalloc

import gguf
import numpy as np
import pytest
from rich.console import Console

import host.checks
import host.cli.images
import host.compiler.allocate
import host.compiler.cache
import host.compiler.emit
import sim.tools
from host.cli import main as cli
from host.cli.images import compiled_image
from host.compiler.compile import compile_fitted, compile_model
from host.compiler.pack import pack_columns
from host.errors import MemoryMissing
from host.files.image import read_image, write_image
from host.models.examples import (
    bitnet_gguf,
    bitnet_tensors,
    llama2c,
    llama_gguf,
    llama_tensors,
    pieces,
    tiny_model,
)
from host.models.registry import read_model
from hw.config import AcceleratorConfig, EngineConfig
from sim.golden.evaluate import model_matrices
from sim.golden.graph import Kind

#: Bytes of memory a weight, at most, while a model is read and compiled.
MOST_BYTES = 6.0


@pytest.fixture
def llama(tmp_path):
    path = tmp_path / "llama.gguf"
    path.write_bytes(llama_gguf(llama_tensors()))
    return path


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path):
    """Keep images of small models too, in a folder of this test."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(host.cli.images, "SMALLEST", 0)
    return tmp_path / "cache" / "tally" / "images"


def same(image, other):
    assert image.memory == other.memory
    for field in ("config", "model", "vocab", "program", "parts", "context", "room", "vocabulary"):
        assert getattr(image, field) == getattr(other, field), field


class TestOnce:
    @pytest.mark.parametrize("options", [{}, {"sparse": True}, {"prefill": 4}])
    def test_recurrent(self, options):
        """A configuration that was found gives the same image as one that was named."""
        model = tiny_model()
        base = AcceleratorConfig(engine=EngineConfig(row_columns=512), vector_depth=1024,
                                 program_depth=64)
        if "prefill" not in options:
            base = dataclasses.replace(base, vector_depth=16384, program_depth=1024)
        image = compile_fitted(model, base, **options)
        same(image, compile_model(model, image.config, **options))
        assert image.config.vector_depth <= 16384

    def test_attention(self, llama):
        model = read_model(llama)
        image = compile_fitted(model, AcceleratorConfig(vector_depth=512, program_depth=16))
        same(image, compile_model(model, image.config))
        assert image.config.program_depth == 2 ** (len(image.program.instructions) - 1).bit_length()
        assert image.config.vector_depth == sum(
            size for _, size in image.program.vectors.values())

    def test_every_weight_is_packed_once(self, llama, monkeypatch):
        packed = []

        def count(weights, planes, config, out):
            packed.append(weights.size)
            pack_columns(weights, planes, config, out)

        monkeypatch.setattr(host.compiler.allocate, "pack_columns", count)
        model = read_model(llama)
        compile_fitted(model, AcceleratorConfig())
        # Widths of this model fill words, so that nothing is filled up.
        assert sum(packed) == sum(step.matrix.weights.size for step in model.network()
                                  if step.matrix is not None)

    def test_every_weight_is_looked_at_once(self, llama, monkeypatch):
        """The program for the largest memories and the one for those that it needs share that."""
        seen = []
        inner = host.compiler.emit.row_magnitudes
        monkeypatch.setattr(host.compiler.emit, "row_magnitudes",
                            lambda weights: seen.append(weights.size) or inner(weights))
        model = read_model(llama)
        compile_fitted(model, AcceleratorConfig())
        assert sum(seen) == sum(step.matrix.weights.size for step in model.network()
                                if step.matrix is not None)


class TestMemory:
    @pytest.mark.parametrize("kind", ["F32", "Q8_0", "bitnet"])
    def test_bytes_a_weight(self, tmp_path, kind):
        """Of a model of ten million weights; more of them need less for each."""
        path = tmp_path / "model.gguf"
        shape = {"width": 512, "ffn_width": 1536, "kv_width": 256, "layers": 3}
        heads = {"heads": 8, "kv_heads": 4}
        if kind == "bitnet":
            path.write_bytes(bitnet_gguf(bitnet_tensors(**shape), **heads))
        else:
            tensors = llama_tensors(**shape)
            types = {name: gguf.GGMLQuantizationType[kind] for name, values in tensors.items()
                     if values.ndim == 2}
            path.write_bytes(llama_gguf(tensors, **heads, types=types))
            del tensors
        tracemalloc.start()
        try:
            model = read_model(path)
            image = compile_fitted(model, AcceleratorConfig())
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        weights = sum(step.matrix.weights.size for step in model.network()
                      if step.matrix is not None)
        assert weights > 9e6
        assert len(image.memory) < peak < MOST_BYTES * weights

    def test_layers_are_read_when_they_are_needed(self, llama):
        layers = read_model(llama).layers
        assert len(layers) == len(list(layers)) == 2
        assert layers[-1] is layers[1]
        assert [type(layer) for layer in layers[:1]] == [type(layers[0])]
        np.testing.assert_array_equal(layers[0].attn_q, layers[:2][0].attn_q)
        with pytest.raises(IndexError):
            layers[2]

    def test_another_process(self, llama):
        """A model goes to workers with all its layers, those of the float reference too."""
        model = read_model(llama)
        for one in (model, model.reference()):
            expected = model_matrices(one)
            found = model_matrices(pickle.loads(pickle.dumps(one)))
            assert found.keys() == expected.keys()
            for name, weights in found.items():
                np.testing.assert_array_equal(weights, expected[name])

    def test_too_little(self, llama, monkeypatch, tmp_path, capsys):
        """What is missing is said before anything is laid out."""
        facts = tmp_path / "meminfo"
        facts.write_text("MemTotal: 9 kB\nMemAvailable:      60 kB\nSwapFree:   30 kB\n")
        monkeypatch.setattr(host.checks, "_MEMORY", facts)
        with pytest.raises(MemoryMissing, match=r"^Model example needs 0\.0 GB of memory, but this "
                                                r"machine has 0\.0 GB left$"):
            compile_fitted(read_model(llama), AcceleratorConfig())
        model = tiny_model()
        with pytest.raises(MemoryMissing, match=r"^The image of model tiny needs"):
            compile_fitted(model, AcceleratorConfig())
        assert cli.main(["run", str(llama), "the", "--device", "golden"]) == 1
        assert capsys.readouterr().err.startswith("tally run: Model example needs 0.0 GB")
        for text in ("MemAvailable: 900000 kB\nSwapFree: 0 kB\n", "MemTotal: 1 kB\n", ""):
            facts.write_text(text)
            compile_fitted(model, AcceleratorConfig())
        facts.unlink()          # another system
        compile_fitted(model, AcceleratorConfig())


def bars(moved=None):
    def bar(title):
        return lambda done, what: (moved if moved is not None else []).append((title, done, what))
    return bar


class TestCache:
    @staticmethod
    def get(path, console=None, **changed):
        options = argparse.Namespace(context=None, masks=None, mask_mode="top-k", prefill=1)
        fields = {"fitted": True, "sparse": True, "config": AcceleratorConfig()}
        for name, value in changed.items():
            if name in fields:
                fields[name] = value
            else:
                setattr(options, name, value)
        config = fields.pop("config")
        return compiled_image(console or Console(file=io.StringIO()), path, config, bars(),
                              options=options, **fields)

    @pytest.fixture
    def compiled(self, monkeypatch):
        """Count how often the compiler is called."""
        calls = []

        def count(*arguments, **options):
            calls.append(options)
            return compile_fitted(*arguments, **options)

        monkeypatch.setattr(host.cli.images, "compile_fitted", count)
        return calls

    def test_beside_the_simulators(self, cache):
        assert host.compiler.cache.image_folder() == cache
        assert cache.parent == sim.tools.cache_folder()

    def test_second_time(self, llama, compiled, monkeypatch, cache):
        first, tokenizer, words = self.get(llama)
        # Neither compiled nor described: only the vocabulary is read.
        monkeypatch.setattr(host.cli.images, "read_model", None)
        second, other, again = self.get(llama)
        assert len(compiled) == 1
        same(dataclasses.replace(first, vocabulary=None), second)
        assert words == again
        assert tokenizer.encode("the end") == other.encode("the end")
        assert [path.suffix for path in cache.iterdir()] == [".image"]

    def test_llama2c(self, compiled, tmp_path):
        path = tmp_path / "model.bin"
        path.write_bytes(llama2c(llama_tensors(vocab=261)))
        (tmp_path / "tok261.bin").write_bytes(pieces({"th": 1.0, "the": 2.0}))
        same(dataclasses.replace(self.get(path)[0], vocabulary=None), self.get(path)[0])
        assert len(compiled) == 1
        (tmp_path / "tok261.bin").write_bytes(pieces({"th": 1.0, "tha": 2.0}))
        self.get(path)          # another tokenizer reads another text, and may find other weights
        assert len(compiled) == 2

    @pytest.mark.parametrize("changed", [
        {"sparse": False}, {"context": 16}, {"config": AcceleratorConfig(top_k=8)}])
    def test_another_option(self, llama, compiled, changed):
        self.get(llama)
        self.get(llama, **changed)
        assert len(compiled) == 2
        self.get(llama, **changed)
        assert len(compiled) == 2

    def test_another_model(self, llama, compiled):
        self.get(llama)
        llama.write_bytes(llama_gguf(llama_tensors(seed=2)))
        self.get(llama)
        assert len(compiled) == 2

    def test_another_compiler(self, llama, compiled, monkeypatch, tmp_path):
        self.get(llama)
        (tmp_path / "pack.py").write_text("changed")
        monkeypatch.setattr(host.compiler.cache, "_SOURCES",
                            (*host.compiler.cache._SOURCES, str(tmp_path / "pack.py")))
        host.compiler.cache._compiler_digest.cache_clear()
        try:
            self.get(llama)
        finally:
            host.compiler.cache._compiler_digest.cache_clear()
        assert len(compiled) == 2

    @pytest.mark.parametrize("damage", [lambda data: data[:-100], lambda data: data[:10],
                                        lambda data: b"", lambda data: data[:-1] + b"\x55"])
    def test_damaged(self, llama, compiled, cache, damage):
        first, *_ = self.get(llama)
        entry, = cache.iterdir()
        data = entry.read_bytes()
        entry.unlink()
        entry.write_bytes(damage(data))
        console = Console(file=io.StringIO(), width=1000)
        second, *_ = self.get(llama, console)
        same(first, second)
        said = console.file.getvalue()
        assert re.match(rf"The image in the cache cannot be used, so it is made again: "
                        rf"{re.escape(str(entry))}: .*\n$", said)
        assert entry.read_bytes() == data
        assert len(compiled) == 2

    def test_bounded(self, llama, compiled, cache, monkeypatch):
        """The entry that was used longest ago goes first."""
        image, *_ = self.get(llama)
        old, = cache.iterdir()
        monkeypatch.setattr(host.compiler.cache, "LARGEST", 2.2 * old.stat().st_size)
        self.get(llama, context=16)
        used = next(path for path in cache.iterdir() if path != old)
        os.utime(used, (1, 1))
        os.utime(old, (2, 2))
        self.get(llama, context=16)         # which makes it the newest
        (cache / "left.part").write_bytes(b"by a process that was killed")
        os.utime(cache / "left.part", (1, 1))
        self.get(llama, context=32)
        assert not old.exists()
        assert len(list(cache.iterdir())) == 2
        assert used.exists()
        monkeypatch.setattr(host.compiler.cache, "LARGEST", len(image.memory) - 1)
        self.get(llama)
        assert not old.exists()             # too large alone
        assert len(compiled) == 4

    def test_folder_cannot_be_written(self, llama, cache):
        cache.parent.mkdir(parents=True)
        cache.write_text("a file")
        console = Console(file=io.StringIO(), width=1000)
        image, *_ = self.get(llama, console)
        assert image.model == "example"
        assert console.file.getvalue().startswith("The image is not kept for the next start: ")

    def test_small_models_are_not_kept(self, llama, compiled, cache, monkeypatch):
        monkeypatch.setattr(host.cli.images, "SMALLEST", 1 << 20)
        self.get(llama)
        self.get(llama)
        assert len(compiled) == 2
        assert not cache.exists()

    def test_bars(self, llama):
        """What takes long is shown as it goes on, and only grows."""
        for titles in (["Looking for the image", "Reading the model", "Compiling"],
                       ["Looking for the image"]):
            moved = []
            compiled_image(Console(file=io.StringIO()), llama, AcceleratorConfig(), bars(moved),
                           fitted=True)
            assert list(dict.fromkeys(title for title, _, _ in moved)) == titles
            for title in titles:
                shares = [done for each, done, _ in moved if each == title]
                assert shares == sorted(shares)

    def test_run(self, llama, capsys, compiled):
        """The same text from the compiler and from the cache, and a wrong option all the same."""
        command = ["run", str(llama), "the", "--device", "golden", "--tokens", "3"]
        texts = []
        for _ in range(2):
            assert cli.main(command) == 0
            texts.append(capsys.readouterr().out.splitlines()[0])
        assert texts[0] == texts[1]
        assert len(compiled) == 1

    def test_mapped(self, tmp_path):
        image = compile_model(tiny_model(), AcceleratorConfig())
        write_image(tmp_path / "image", image)
        same(read_image(tmp_path / "image"), read_image(tmp_path / "image", mapped=True))


def test_progress(llama):
    """From reading to the last matrix, it only grows."""
    moved = []
    compile_fitted(read_model(llama), AcceleratorConfig(),
                   progress=lambda done, what: moved.append((done, what)))
    shares = [done for done, _ in moved]
    assert shares == sorted(shares)
    assert shares[0] == 0
    assert 0.9 < shares[-1] < 1
    names = [what for _, what in moved]
    assert names[:3] == ["embedding", "blk.0", "blk.1"]
    assert names[-1] == "head"
    assert sum(Kind.LINEAR is step.kind for step in read_model(llama).network()) < len(names)
