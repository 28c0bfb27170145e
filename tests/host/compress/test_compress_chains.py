"""Profiles, plans and healing of chains, and ``python -m host compress``."""

import dataclasses
import importlib.util
import json
import re

import numpy as np
import pytest

from host.cli import compress as command
from host.cli import main as cli
from host.cli.terminal import size
from host.compress.chains import Choice, compress, layers_of
from host.compress.pareto import TwoDigits, float_bytes, logarithms, measure
from host.compress.profile import EMBEDDING, METHODS, cycles_of, plan_for, profile
from host.measure.compare import Text, read_llama, stored_bytes
from host.models.examples import llama_gguf, llama_tensors
from host.models.mpo_llama import MATRICES
from host.models.registry import read_model
from host.models.tensor_train import Shape, full_bonds
from hw import records
from hw.config import EngineConfig
from sim.golden.arithmetic import ARITHMETICS
from sim.golden.bf16 import to_float32
from sim.golden.evaluate import ExactProducts, GoldenLM, model_matrices
from tests.host.corpus_examples import write_corpus

DOCUMENTS = [f"the story number {n}: the end of the {n % 7} bears, and of number {n}"
             for n in range(300)]
needs_torch = pytest.mark.skipif(importlib.util.find_spec("torch") is None,
                                 reason="PyTorch is not installed: pip install -e '.[train]'")
needs_matplotlib = pytest.mark.skipif(importlib.util.find_spec("matplotlib") is None,
                                      reason="matplotlib is not installed")


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "example.gguf"
    path.write_bytes(llama_gguf(llama_tensors(), context=64))
    return path


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return write_corpus(tmp_path_factory.mktemp("corpus"), DOCUMENTS, held_out=lambda n: n < 8)


@pytest.fixture(scope="module")
def layers(path):
    return layers_of(read_llama(path))


@pytest.fixture(scope="module")
def text(layers):
    return Text.read(layers.model, DOCUMENTS, 2, 24)


@pytest.fixture(scope="module")
def found(layers, text, tmp_path_factory):
    return profile(layers, text.tokens, tmp_path_factory.mktemp("profile") / "profile.jsonl")


def made_of(layers, plan):
    return compress(layers, layers.chains(plan.choices), plan.embedding_planes)


class TestProfile:
    def test_rows(self, found, layers):
        """Each matrix at two bonds and with two planes; more is lost with less."""
        assert len(found.rows) == 5 + 2 * len(MATRICES) * 3
        rows = {(row.layer, row.matrix, row.bond): row for row in found.rows if row.bond}
        for layer, matrices in enumerate(layers.matrices):
            for name, matrix in matrices.items():
                half, quarter = (round(share * matrix.size / sum(matrix.shape))
                                 for share in (0.5, 0.25))
                one, other = rows[layer, name, half], rows[layer, name, quarter]
                assert 0 < one.error < other.error < 1
                assert one.jsd > 0 < other.jsd
        planes = [row.jsd for row in found.rows if row.matrix == EMBEDDING]
        assert planes[0] > planes[2] > planes[4]

    def test_one_matrix(self, found, layers, text):
        """A row says what the float network makes of one other matrix, by its definition."""
        row = next(row for row in found.rows if (row.layer, row.matrix) == (1, "ffn_up")
                   and row.bond)
        u, values, v = np.linalg.svd(layers.matrices[1]["ffn_up"].astype(np.float64))
        values[row.bond:] = 0
        changed = (u[:, :len(values)] * values) @ v[:len(values)]
        assert row.error == pytest.approx(
            np.square(changed - layers.matrices[1]["ffn_up"]).sum()
            / np.square(layers.matrices[1]["ffn_up"]).sum(), rel=1e-4)
        model = layers.model.reference()
        expected = logarithms(model, "float", text)
        # The network's matrix has gains and balancing powers in its columns and rows.
        ratio = layers.matrices[1]["ffn_up"] / layers.model.layers[1].ffn_up
        layer = dataclasses.replace(model.layers[1],
                                    ffn_up=(changed / ratio).astype(np.float32))
        other = dataclasses.replace(model, layers=(model.layers[0], layer))
        result = measure(other, text, expected, "float")
        assert row.jsd == pytest.approx(result.jsd, rel=1e-2)

    def test_goes_on(self, found, layers, text, tmp_path, monkeypatch):
        """What was measured before an interruption is not measured again."""
        path = tmp_path / "profile.jsonl"
        profile(layers, text.tokens, path)
        lines = path.read_text().splitlines()
        path.write_text("\n".join([*lines[:-3], lines[-3][:10]]))
        said = []
        again = profile(layers, text.tokens, path, lambda done, what: said.append(what))
        assert again.rows == found.rows
        assert path.read_text().splitlines() == lines
        assert len(said) == len(found.rows) + 1

        def never(*_):
            raise AssertionError
        monkeypatch.setattr("host.compress.profile._Text", never)
        assert profile(layers, text.tokens, path).rows == found.rows

    def test_of_another_text(self, layers, text, tmp_path):
        path = tmp_path / "profile.jsonl"
        profile(layers, text.tokens, path)
        with pytest.raises(ValueError, match=r"is the profile of another model or text"):
            profile(layers, text.tokens[:, :-1], path)


class TestPlan:
    @pytest.mark.parametrize("method", METHODS)
    def test_fits(self, found, layers, method):
        """The image is as large as was asked for, or smaller; what is predicted grows."""
        size = stored_bytes(layers.model)
        divergences = []
        for share in (0.9, 0.6):
            plan = plan_for(found, method, share * size)
            assert plan.bytes <= share * size
            made = made_of(layers, plan)
            assert plan.bytes * 0.97 <= stored_bytes(made) <= plan.bytes
            divergences.append(plan.divergence)
            kinds = {choice.method for layer in plan.choices for choice in layer.values()}
            assert kinds <= set(METHODS[method])
        assert divergences[0] < divergences[1]

    def test_joint_is_best(self, found, layers):
        size = 0.7 * stored_bytes(layers.model)
        plans = {method: plan_for(found, method, size).divergence for method in METHODS}
        assert plans["joint"] <= min(plans.values()) * 1.05

    def test_too_small(self, found):
        with pytest.raises(ValueError, match=r"^Bytes of method mpo must be at least [\d,]+, "
                                             r"not 100$"):
            plan_for(found, "mpo", 100)

    def test_fixed(self, found, layers):
        shape = Shape((2, 48), (32, 2))
        choice = Choice(shape, (16,), 4)
        plan = plan_for(found, "quantized", 60000, fixed={"ffn_up": choice})
        assert all(layer["ffn_up"] == choice for layer in plan.choices)

    def test_cycles(self, found, layers):
        """Digits cost no byte: a narrow port does not mind them, lanes of a wide one do."""
        shape = Shape((4, 24), (16, 4))
        choice, plain = Choice(shape, (16,), 4), Choice(Shape((1, 96), (64, 1)), (16,), 4)
        narrow, wide = (EngineConfig(lanes=16, result_lanes=8, port_bytes=port)
                        for port in (1, 16))
        # 4 bytes a word; rows of the cores are 4 and 2 groups, columns 16 and 64.
        rows = 4 * 96
        assert choice.cycles(narrow) == 4 * (4 * 16 + 2 * 64) * 4 + rows
        assert choice.cycles(wide) == 4 * (4 * 16 + 2 * 64) * 4 + rows / 16
        assert plain.cycles(wide) == 1 * (1 * 64 + 6 * 16) * 4 + rows / 16
        for engine in (narrow, wide):
            whole = cycles_of(layers, engine)
            plan = plan_for(found, "joint", whole / 2, engine=engine)
            assert sum(choice.cycles(engine) for layer in plan.choices
                       for choice in layer.values()) <= whole / 2

    def test_shapes_lie_in_order(self, found, layers):
        """No digits where heads are turned; those of 16 elements are in order."""
        for name, matrix in layers.matrices[0].items():
            for shape in found.shapes(name, matrix, METHODS["joint"]):
                assert not shape.obstacle
                if name in ("attn_q", "attn_k"):
                    assert max(shape.rows[:-1], default=1) == 1


class TestTwoDigits:
    def test_is_nearer(self, layers, text):
        """Of a chain at full rank, two digits leave less of an error than one."""
        shape = Shape((1, 96), (64, 1))
        whole = {name: Choice(Shape((len(matrix),), (matrix.shape[1],)), (), 5)
                 for name, matrix in layers.matrices[0].items()}
        whole |= {name: Choice(shape, full_bonds(shape), 5) for name in ("ffn_up", "ffn_gate")}
        made = compress(layers, layers.chains([whole, whole]), 6)
        products = ExactProducts(model_matrices(made))
        exact = GoldenLM(made, ARITHMETICS["float"], products)
        errors = []
        for kind in (GoldenLM, TwoDigits):
            lm = kind(made, ARITHMETICS["exact"], products)
            errors.append(0.0)
            for step in made.network():
                if step.name == "ffn_up" and step.part == "blk.0":
                    codes, = step.operands
                    rng = np.random.default_rng(2)
                    x = rng.normal(size=(20, codes.elements)).astype(np.float32)
                    bits = (x.view(np.uint32) >> 16).astype(np.uint16)
                    x = to_float32(bits)
                    kept = lm._compute(codes, [bits], text.tokens)
                    y = lm._compute(step, [kept], text.tokens)
                    y = to_float32(y)
                    z = exact._compute(step, [exact._compute(codes, [x], text.tokens)],
                                       text.tokens)
                    errors[-1] = float(np.square(y - z).mean())
        assert 0 < errors[1] < 0.2 * errors[0]


@pytest.fixture(scope="module")
def known(tmp_path_factory):
    """Name a profile that all commands go on with."""
    return tmp_path_factory.mktemp("profile") / "profile.jsonl"


def run(capsys, *arguments):
    status = cli.main(["compress", *map(str, arguments)])
    captured = capsys.readouterr()
    return status, captured.out, captured.err


class TestCommand:
    @pytest.fixture
    def arguments(self, path, corpus, known, tmp_path):
        return [path, "--corpus", corpus, "--output", tmp_path / "small.gguf", "--tokens", 24,
                "--profile", known]

    def test_ratio(self, capsys, monkeypatch, arguments, path, tmp_path):
        monkeypatch.setenv("COLUMNS", "80")
        status, out, err = run(capsys, *arguments, "--ratio", 5)
        assert (status, err) == (0, "")
        made = read_model(tmp_path / "small.gguf")
        assert float_bytes(read_llama(path)) / stored_bytes(made) >= 5
        stored, before = stored_bytes(made), path.stat().st_size
        assert (f"{stored / before:.1%} of the {size(before)} of {path.name}; {stored:,} bytes"
                in out)
        written = (tmp_path / "small.gguf").stat().st_size
        assert f"Wrote {tmp_path}/small.gguf: {size(written)}" in out
        tables = out.partition(" matrices were not factored")[0].rpartition("\n")[0]
        assert max(map(len, tables.splitlines())) <= 80
        assert "…" not in tables
        assert not (tmp_path / "small.gguf.part").exists()
        assert cli.main(["run", str(tmp_path / "small.gguf"), "the", "--tokens", "2", "--greedy",
                         "--device", "golden"]) == 0

    def test_divergence(self, capsys, arguments):
        status, out, _ = run(capsys, *arguments, "--max-divergence", 0.02)
        assert status == 0
        assert float(re.search(r"^Measured .*divergence (\S+) ", out, re.MULTILINE)[1]) <= 0.02

    def test_chain(self, capsys, arguments, tmp_path):
        status, _, _ = run(capsys, *arguments, "--budget", 60000, "--chain",
                           "ffn_up=2x48/32x2:16", "--planes", 4)
        assert status == 0
        made = read_model(tmp_path / "small.gguf")
        assert str(made.layers[1]["ffn_up"].shape) == "2x48/32x2"
        assert made.layers[1]["ffn_up"].bonds == (16,)

    @needs_matplotlib
    def test_plot(self, capsys, arguments, tmp_path):
        assert run(capsys, *arguments, "--budget", 60000, "--plot", tmp_path / "p.svg")[0] == 0
        assert "<svg" in (tmp_path / "p.svg").read_text()

    @needs_torch
    def test_heal(self, capsys, arguments, tmp_path):
        status, out, _ = run(capsys, *arguments, "--budget", 35000, "--heal", 12, "--batch", 1)
        assert status == 1      # the text has no 12 rows of 128 tokens
        assert "Healing" not in out

    def test_worse_by_healing(self, capsys, monkeypatch, arguments, tmp_path):
        """What healing has made worse is not written."""
        monkeypatch.setattr(command, "check_device", lambda device: None)
        monkeypatch.setattr(command, "healing_tokens", lambda *_: np.zeros((1, 2), np.int64))
        monkeypatch.setattr(command, "_heal", lambda console, options, layers, plan, made, tokens:
                            dataclasses.replace(made, head=np.zeros_like(made.head)))
        status, out, _ = run(capsys, *arguments, "--budget", 35000, "--heal", 1)
        assert status == 0
        assert "That is not nearer to the original" in out
        assert read_model(tmp_path / "small.gguf").head.any()

    @needs_torch
    def test_unknown_device(self, capsys, arguments):
        status, _, err = run(capsys, *arguments, "--budget", 35000, "--heal", 1, "--device", "tpu")
        assert status == 1
        assert re.match(r"tally compress: Option --device must be one that PyTorch has, "
                        r"not 'tpu': .*\n$", err)

    def test_missing_package(self, capsys, monkeypatch, arguments):
        monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
        for option, extra in (("--heal", "train"), ("--plot", "plot")):
            status, _, err = run(capsys, *arguments, "--budget", 35000, option, 1)
            assert status == 1
            assert re.match(rf"tally compress: Option {option} needs \w+, an optional "
                            rf"extra: pip install -e '\.\[{extra}\]'\n$", err)

    def test_output_is_no_file(self, capsys, arguments, tmp_path):
        for path in (tmp_path, tmp_path / "absent" / "small.gguf"):
            with pytest.raises(SystemExit):
                run(capsys, *arguments, "--budget", 35000, "--output", path)
            assert capsys.readouterr().err == (
                f"tally compress: argument --output: '{path}' must be a file in a folder that "
                f"exists\n")

    def test_other_profile(self, capsys, arguments, tmp_path):
        (tmp_path / "p").write_text("no JSON\n")
        status, _, err = run(capsys, *arguments, "--budget", 35000, "--profile", tmp_path / "p")
        assert status == 1
        assert re.match(rf"tally compress: {tmp_path}/p: is not a profile, which begins ",
                        err)

    @pytest.mark.parametrize(("options", "message"), [
        (["--ratio", 90], r"Ratio of method joint must be at most \d+\.\d\d, not 90"),
        (["--speedup", 90], r"Speedup of method joint must be at most \d+\.\d\d, not 90"),
        (["--budget", 10], r"Bytes of method joint must be at least [\d,]+, not 10"),
        (["--max-divergence", 1e-9], r"Divergence of method joint must be at least 0\.\d+, "
                                     r"not 1e-09"),
        (["--budget", 9e4, "--chain", "ffn_up=2x50/32x2:16"],
         "Option --chain for ffn_up: Digits of 96 rows must multiply to 96, not 2x50 = 100; the "
         "nearest for the last digits is 48"),
        (["--budget", 9e4, "--chain", "ffn_up=2x48/32x2:65"],
         "Option --chain for ffn_up: Bond 1 of 2x48/32x2 must be in 1..64, where 64 is full rank, "
         "not 65"),
        (["--budget", 9e4, "--chain", "up=2"], "Option --chain must be MATRIX=ROWS/COLUMNS:BONDS "
                                               "with a matrix of attn_q, ")])
    def test_refused(self, capsys, arguments, tmp_path, options, message):
        status, _, err = run(capsys, *arguments, *options)
        assert status == 1
        assert err.count("\n") == 1
        assert re.match(f"tally compress: {message}", err)
        assert not (tmp_path / "small.gguf").exists()


@needs_torch
class TestHealing:
    def test_network_is_that_of_the_golden_model(self, layers, text):
        import torch

        from host.compress.heal import _floating
        model = layers.model.reference()
        golden = GoldenLM(model, ARITHMETICS["float"], ExactProducts(model_matrices(model)))
        tokens = text.tokens[:, :-1]
        expected = golden.logits(golden.forward(tokens, golden.start(len(tokens))))
        found = _floating(layers)(torch.tensor(tokens)).detach().numpy()
        np.testing.assert_allclose(found.reshape(expected.shape), expected, atol=2e-3)

    def test_loss_falls(self, layers, found, text):
        from host.compress.heal import heal, pack_tokens
        from host.text.tokenizer import open_tokenizer
        tokens = pack_tokens(open_tokenizer(layers.model.vocabulary),
                             layers.model.vocabulary.start, DOCUMENTS, 32, 24)
        plan = plan_for(found, "joint", 0.4 * stored_bytes(layers.model))
        made = made_of(layers, plan)
        healed = heal(layers, plan.choices, plan.embedding_planes, made, tokens, steps=20,
                      batch=8, rate=0.01, device="cpu")
        assert healed.last_loss < 0.7 * healed.first_loss
        expected = logarithms(layers.model.reference(), "float", text)
        assert measure(healed.model, text, expected).jsd < measure(made, text, expected).jsd
        assert stored_bytes(healed.model) <= plan.bytes
        with pytest.raises(ValueError, match=r"^Text for healing must fill 9000 rows of 24 tokens"):
            pack_tokens(open_tokenizer(layers.model.vocabulary), 0, DOCUMENTS, 9000, 24)


def test_record(capsys, monkeypatch, path, corpus, tmp_path):
    """Rows of each method; those of another model stay."""
    monkeypatch.setattr(records, "RESULTS", tmp_path)
    record = tmp_path / "compression.json"
    record.write_text(json.dumps({"versions": {}, "configuration": {"x": {"command": "made x"}},
                                  "rows": [{"model": "x", "method": "float32", "bytes": 9,
                                            "bits_per_byte": 1.0, "digits": 0,
                                            "healed": False}]}))
    arguments = [
        "experiment", "tensor", str(path), "--corpus", str(corpus), "--megabytes", "0.06",
        "--profile", str(tmp_path / "p.jsonl"), "--documents", "2", "--tokens", "24",
        "--workers", "1", "--calibration", "24", "--plot", str(tmp_path / "sizes.svg")]
    assert cli.main(arguments) == 0
    found = json.loads(record.read_text())
    assert found["command"].startswith("made x; python -m host")
    assert [row["model"] for row in found["rows"]].count("x") == 1
    rows = [row for row in found["rows"] if row["model"] != "x"]
    assert [row["method"] for row in rows if row.get("digits") != 2] == [
        "float32", "quantized", "low-rank", "mpo", "joint"]
    assert all(row["bytes"] <= 60000 for row in rows[1:])
    # What is known is not measured again; a text of another length is another record.
    monkeypatch.setattr("host.compress.pareto._measure_file", None)
    assert cli.main([*arguments, "--methods", "quantized", "joint"]) == 0
    assert json.loads(record.read_text())["rows"] == found["rows"]
