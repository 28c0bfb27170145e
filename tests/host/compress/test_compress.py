"""Masks: the file, the calibration, and what the command lines say."""

import dataclasses
import json
import re

import numpy as np
import pytest

from host.cli import experiment
from host.cli import main as cli
from host.cli.experiment import common, cycles, rotation
from host.compress.calibrate import calibrate, calibration_tokens
from host.compress.masks import (
    MaskFileError,
    fingerprint,
    list_norms,
    read_masks,
    write_masks,
)
from host.measure.evaluate import evaluate
from host.models.base import LanguageModel
from host.models.examples import tiny_model, tiny_vocabulary
from host.models.mmfreelm import write_model
from host.models.registry import read_model
from host.text.corpus import read_corpus
from host.text.tokenizer import Tokenizer
from hw import records
from sim.golden.arithmetic import ARITHMETICS
from sim.golden.bf16 import to_float32
from sim.golden.evaluate import ExactProducts, GoldenLM, model_matrices
from sim.golden.graph import Matrix, Network
from sim.golden.quantizer import quantize
from sim.golden.wina import Mask
from tests.host.compress.test_rotation import random_llama, write_llama2c
from tests.host.corpus_examples import write_corpus

NAMES = ("mix_in", "mix_out", "ffn_in", "ffn_hidden")
TOKENS = np.random.default_rng(11).integers(0, 259, (2, 6))


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class TwoLists(LanguageModel):
    """One layer, whose two matrices in front have a list each."""

    matrices: dict[str, Matrix]
    width, ffn_width, vocab = 32, 24, 40

    def _describe(self):
        n, matrices = Network(), self.matrices
        n.part = "embedding"
        x = n.embed(matrices["embedding"], "x")
        n.part = "blk.0"
        norm = n.norm(x)
        update = n.sigmoid_of_negative(n.linear(matrices["forget"], n.codes("mix_in", x), norm))
        gained = n.multiply(x, n.constant("gains", np.linspace(0.5, 2, 32), factor=True))
        candidate = n.linear(matrices["candidate"], n.codes("mix_in2", gained), norm)
        state = n.recur(update, candidate)
        x = n.add(x, n.linear(matrices["ffn_down"], n.codes("ffn_hidden", state)), "x")
        n.part = "head"
        n.head("head", matrices["embedding"].weights.T, n.codes("head_in", x), n.norm(x))
        return n


def two_lists():
    rng = np.random.default_rng(15)

    def matrix(name, rows, columns):
        return Matrix(f"blk.0.{name}", rng.integers(-1, 2, (rows, columns), np.int8), 0.25)

    return TwoLists(name="two lists", logit_scales={"lmul": 0.015625}, vocabulary=tiny_vocabulary(),
                    layers=(None,),
                    matrices={"embedding": matrix("embedding", 32, 40),
                              "forget": matrix("forget", 24, 32),
                              "candidate": matrix("candidate", 24, 32),
                              "ffn_down": matrix("ffn_down", 32, 24)})


@pytest.fixture(scope="module")
def model():
    return tiny_model()


@pytest.fixture(scope="module")
def model_path(tmp_path_factory, model):
    path = tmp_path_factory.mktemp("model") / "tiny.gguf"
    write_model(path, model)
    return path


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Documents of which three are held out; some digests make calibration text."""
    documents = [f"the story number {n}, " + "the end " * 9 for n in range(300)]
    documents = [document.strip() for document in documents]
    return write_corpus(tmp_path_factory.mktemp("corpus"), documents, held_out=lambda n: n < 3)


class TestCalibrate:
    def test_uniform(self, model):
        masks, = calibrate(model, TOKENS, [0.25], allocation="uniform", workers=1)
        assert [mask.list for mask in masks.lists] == [
            f"blk.{layer}.{name}" for layer in range(2) for name in NAMES]
        assert {mask.columns: mask.keep for mask in masks.lists} == {256: 192, 512: 384}
        assert masks.dropped(model) == 0.25
        assert masks.fingerprint == fingerprint(model)

    @pytest.mark.parametrize("method", ["wina", "teal"])
    def test_greedy_takes_the_cheapest_step(self, model, method):
        """Written again without laziness, for one layer."""
        one = dataclasses.replace(model, layers=model.layers[:1])
        found = calibrate(one, TOKENS, [0.03, 0.08], method=method, workers=1)
        trits = 256 * (3 + 1 + 2 * 2 + 2) * 256
        lists = one.network().lists()
        rows = dict(zip(lists, (768, 256, 1024, 256), strict=True))
        columns = dict(zip(lists, (256, 256, 256, 512), strict=True))

        def output(keep):
            return layer_output(one, {name: Mask(list_norms(lists[name], method), keep[name])
                                      for name in lists})

        steps = dict.fromkeys(lists, 0)

        def keep(more=None):
            return {name: columns[name]
                    - round((steps[name] + (name == more)) * 0.01 * trits / rows[name])
                    for name in lists}

        def left():
            return sum(count * rows[name] for name, count in keep().items())

        dense = layer_output(one, {})
        for masks, sparsity in zip(found, [0.03, 0.08], strict=True):
            while trits - left() < sparsity * trits:
                errors = {name: np.linalg.norm(output(keep(name)) - dense, axis=1).mean()
                          for name in lists}
                steps[min(errors, key=errors.get)] += 1
            assert {mask.list: mask.keep for mask in masks.lists} == keep()
            assert sparsity <= masks.dropped(one) < sparsity + 0.011

    def test_thresholds_keep_as_many_in_the_mean(self, model):
        masks, = calibrate(model, TOKENS, [0.5], allocation="uniform", workers=1)
        codes = record_codes(model, TOKENS)
        for mask in masks.lists:
            norms = list_norms(model.network().lists()[mask.list], "wina").tolist()
            found = sorted(value * value * norm
                           for row in codes[mask.list].tolist()
                           for value, norm in zip(row, norms, strict=True))
            above = [score for score in found if score > mask.threshold]
            assert len(above) <= mask.keep * TOKENS.size
            assert len([score for score in found if score >= mask.threshold]) > (
                mask.keep * TOKENS.size) or mask.threshold == 0

    def test_processes_find_the_same(self, model):
        one = calibrate(model, TOKENS, [0.1], workers=1)
        done = []
        two = calibrate(model, TOKENS, [0.1], workers=2, report=lambda: done.append(1))
        assert one == two
        assert len(done) == 2

    @pytest.mark.parametrize(("sparsities", "message"), [
        ([0.2, -0.1], "Sparsity must be 0 to 0.9965, where one entry is left in each list, "
                      "not -0.1"),
        ([0.999], "Sparsity must be 0 to 0.9965, where one entry is left in each list, not 0.999"),
        ([0.3, 0.2], "Sparsities must ascend, not be [0.3, 0.2]"),
    ])
    def test_mistakes(self, model, sparsities, message):
        with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
            calibrate(model, TOKENS, sparsities)

    def test_no_text(self, model):
        with pytest.raises(ValueError, match=r"^Calibration text must not be empty$"):
            calibrate(model, np.zeros((0, 5), int), [0.5])
        message = "Calibration needs 2 documents of 9 tokens, but the text has 1"
        with pytest.raises(ValueError, match=f"^{message}$"):
            calibration_tokens(model, Tokenizer(model.vocabulary),
                               ["short", "long enough", "tiny"], 2, 9)


def record_codes(model, tokens):
    """Codes of each list."""
    found = {}

    def recorder(label):
        def record(codes):
            found[label] = codes
            return codes
        return record

    lm = GoldenLM(model, ARITHMETICS["lmul"], ExactProducts(model_matrices(model)),
                  {label: recorder(label) for label in model.network().lists()})
    lm.forward(tokens, lm.start(len(tokens)))
    return found


def layer_output(model, masks):
    """Residual stream behind the only layer of a model."""
    lm = GoldenLM(model, ARITHMETICS["lmul"], ExactProducts(model_matrices(model)), masks)
    parts, values = lm.parts(), {}
    for part in ("embedding", "blk.0"):
        lm.execute(parts[part], values, TOKENS, lm.start(len(TOKENS)))
    return to_float32(values[parts["blk.0"][-1]])


class TestEvaluate:
    DOCUMENTS = ([4, 9, 4, 77, 200], [5] * 12)

    def test_masks_that_keep_all_change_nothing(self, model):
        lists = model.network().lists()
        masks = {label: Mask(list_norms(lists[label], "wina"), lists[label][0].weights.shape[1])
                 for label in lists}
        dense = evaluate(model, self.DOCUMENTS, 30, "lmul", workers=1)
        masked = evaluate(model, self.DOCUMENTS, 30, "lmul", masks=masks, workers=1)
        assert masked.bits_per_byte == dense.bits_per_byte
        for label in lists:
            np.testing.assert_array_equal(masked.live[label], dense.live[label])

    def test_lists_have_no_more_than_they_may(self, model):
        masks, = calibrate(model, TOKENS, [0.5], workers=1)
        dense = evaluate(model, self.DOCUMENTS, 30, "lmul", workers=1)
        masked = evaluate(model, self.DOCUMENTS, 30, "lmul", masks=masks.of(model), workers=2)
        assert masked.bits_per_byte != dense.bits_per_byte
        for mask in masks.lists:
            live = masked.live[mask.list]
            assert live.sum() == masked.tokens
            assert np.flatnonzero(live).max() <= mask.keep

    def test_another_family(self):
        """A vector with gains of its own in front of a matrix has a list and a mask of its own."""
        model = two_lists()
        masks, = calibrate(model, TOKENS % 40, [0.3], workers=1)
        assert [(mask.list, mask.columns) for mask in masks.lists] == [
            ("blk.0.mix_in", 32), ("blk.0.mix_in2", 32), ("blk.0.ffn_hidden", 24)]
        masked = evaluate(model, (TOKENS % 40).tolist(), 30, "lmul", masks=masks.of(model),
                          workers=1)
        dense = evaluate(model, (TOKENS % 40).tolist(), 30, "lmul", workers=1)
        assert masked.bits_per_byte != dense.bits_per_byte
        assert masked.hidden == ("blk.0.ffn_hidden",)
        for mask in masks.lists:
            assert np.flatnonzero(masked.live[mask.list]).max() <= mask.keep

    def test_density_of_every_list(self, model):
        measured = evaluate(model, [self.DOCUMENTS[0]], 30, "lmul", workers=1)
        codes = record_codes(model, np.array([[0, *self.DOCUMENTS[0]]]))
        for label, values in codes.items():
            assert measured.list_density(label)["density"] == pytest.approx(np.mean(values != 0))

    def test_no_codes(self, model):
        masks = {"blk.0.mix_in": Mask(np.ones(256, np.uint16), 5)}
        with pytest.raises(ValueError, match=r"^Arithmetic 'float' has no int8 codes to mask$"):
            evaluate(model, self.DOCUMENTS, 30, "float", masks=masks)


class TestFile:
    def test_round_trip(self, model, tmp_path):
        masks, = calibrate(model, TOKENS, [0.1], provenance={"command": "x"}, workers=1)
        write_masks(tmp_path / "masks.json", masks)
        assert read_masks(tmp_path / "masks.json") == masks
        assert masks.provenance == {"command": "x", "documents": 2, "tokens_per_document": 6}

    @pytest.mark.parametrize(("change", "message"), [
        ({"format": "other"}, "not a mask file: field 'format' must be 'tally-masks 1'"),
        ({"method": "magic"}, "field 'method' must be wina or teal, not 'magic'"),
        ({"sparsity": "half"}, "field 'sparsity' must be of type float, not 'half'"),
        ({"lists": [3]}, "field 'lists' must hold objects, not 3"),
        ({"lists": [{"list": "blk.2.mix_in", "columns": 9, "threshold": 0}]},
         "field 'keep' must be of type int, not None"),
        ({"lists": [{"list": "blk.2.mix_in", "columns": 9, "keep": 10, "threshold": 0}]},
         "list blk.2.mix_in must keep 1 to 9 entries, not 10"),
        ({"lists": [{"list": "blk.2.mix_in", "columns": 9, "keep": 1, "threshold": -1}]},
         "list blk.2.mix_in must have a threshold of at least 0, not -1"),
    ])
    def test_malformed(self, model, tmp_path, change, message):
        path = tmp_path / "masks.json"
        write_masks(path, calibrate(model, TOKENS, [0.1], allocation="uniform", workers=1)[0])
        path.write_text(json.dumps(json.loads(path.read_text()) | change))
        with pytest.raises(MaskFileError, match=f"^{re.escape(f'{path}: {message}')}$"):
            read_masks(path)

    def test_unreadable(self, tmp_path):
        with pytest.raises(MaskFileError, match=r"nothing: No such file or directory$"):
            read_masks(tmp_path / "nothing")
        (tmp_path / "text").write_text("hello")
        with pytest.raises(MaskFileError, match="text: not a mask file: Expecting value"):
            read_masks(tmp_path / "text")

    def test_another_model(self, model):
        masks, = calibrate(model, TOKENS, [0.1], allocation="uniform", workers=1)
        other = tiny_model(seed=6)
        message = (f"Masks were calibrated for model tiny with the fingerprint "
                   f"{fingerprint(model)}, but model tiny has {fingerprint(other)}; "
                   f"calibrate again")
        with pytest.raises(MaskFileError, match=f"^{message}$"):
            masks.of(other)

    def test_another_list(self, model):
        masks, = calibrate(model, TOKENS, [0.1], allocation="uniform", workers=1)
        for change in ({"list": "blk.7.mix_in"}, {"columns": 300}):
            wrong = dataclasses.replace(masks.lists[0], **change)
            message = (f"Masks name a list {wrong.list} of {wrong.columns} columns, which model "
                       f"tiny does not have; calibrate again")
            with pytest.raises(MaskFileError, match=f"^{message}$"):
                dataclasses.replace(masks, lists=(wrong,)).of(model)


def run(capsys, *arguments):
    """Exit status and what was printed."""
    status = cli.main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return status, captured.out, captured.err


class TestCommandLine:
    def test_calibrate_and_evaluate(self, capsys, model, model_path, corpus, tmp_path):
        path = tmp_path / "masks.json"
        status, out, err = run(capsys, "calibrate", model_path, "--corpus", corpus, "--documents",
                               1, "--tokens", 8, "--sparsity", 0.2, "--method", "teal", "--output",
                               path, "--workers", 1)
        assert (status, err) == (0, "")
        assert "Columns that each list of tiny keeps: teal, 2" in out
        masks = read_masks(path)
        assert masks.method == "teal"
        assert masks.provenance["text"] == "calibration"
        # The file holds the same trits, so that it fits the model it was written from.
        tokenizer = Tokenizer(read_model(model_path).vocabulary)
        documents = [tokenizer.encode(text) for text in read_corpus(corpus)["heldout"]]
        size = sum(len(text.encode()) for text in read_corpus(corpus)["heldout"])
        for mode in ("top-k", "threshold"):
            status, out, err = run(capsys, "evaluate", model_path, "--corpus", corpus, "--masks",
                                   path, "--mask-mode", mode, "--workers", 1)
            assert (status, err) == (0, "")
            assert out.startswith(f"Masked, so not exact: teal, {mode}, 2")
            expected = evaluate(model, documents, size, "lmul", masks=masks.of(model, mode),
                                workers=1)
            assert re.search(rf"lmul +{expected.bits_per_byte[0]:.4f} ", out)

    def test_mistakes(self, capsys, model_path, corpus, tmp_path):
        path = tmp_path / "masks.json"
        common = ("calibrate", model_path, "--corpus", corpus, "--output", path)
        for extra, message in (
                (("--tokens", 5000), "Calibration needs 8 documents of 5000 tokens, but the text "
                                     "has 0"),
                (("--documents", 1, "--tokens", 8, "--sparsity", 1),
                 "Sparsity must be 0 to 0.9965, where one entry is left in each list, not 1.0")):
            assert run(capsys, *common, *extra) == (1, "", f"tally calibrate: {message}\n")
        assert not path.exists()
        assert run(capsys, "evaluate", model_path, "--corpus", corpus, "--masks", path) == (
            1, "", f"tally evaluate: {path}: No such file or directory\n")
        run(capsys, *common, "--documents", 1, "--tokens", 8, "--allocation", "uniform")
        assert run(capsys, "evaluate", model_path, "--corpus", corpus, "--masks", path,
                   "--arithmetic", "float") == (
            1, "", "tally evaluate: Arithmetic 'float' has no int8 codes that --masks "
                   "could act on\n")


class TestExperiments:
    @pytest.fixture
    def kept(self, monkeypatch):
        """Collect what a command records."""
        records = {}
        for module in experiment.COMMANDS:
            monkeypatch.setattr(module, "write_record",
                                lambda name, **record: records.update({name: record}),
                                raising=False)     # netlist has a record of its own
        return records

    def test_density(self, kept, model, model_path, corpus):
        assert cli.main(["experiment", "density", "--model", str(model_path), "--corpus",
                         str(corpus), "--documents", "2", "--workers", "1"]) == 0
        rows = kept["twell"]["rows"]
        assert [(row["layer"], row["list"]) for row in rows] == [
            (layer, name) for layer in range(2) for name in NAMES]
        codes = record_codes(model, np.array([[0, *Tokenizer(model.vocabulary).encode(
            read_corpus(corpus)["heldout"][0])]]))
        densities = [np.mean(codes[f"blk.0.{name}"] != 0) for name in ("mix_in", "mix_out")]
        for name, expected in zip(("mix_in", "mix_out"), densities, strict=True):
            row = next(row for row in rows if row["list"] == name)
            assert row["density_mean"] == pytest.approx(expected, abs=0.01)
            assert row["density_mean"] <= row["density_p99"] <= row["density_max"]

    def test_wina(self, kept, monkeypatch, model_path, corpus):
        monkeypatch.setattr(common, "SPARSITIES", (0.1, 0.5))
        monkeypatch.setattr(common, "CALIBRATION_DOCUMENTS", 1)
        monkeypatch.setattr(common, "CALIBRATION_TOKENS", 8)
        assert cli.main(["experiment", "wina", "--model", str(model_path), "--corpus", str(corpus),
                                 "--documents", "2", "--workers", "2"]) == 0
        rows = kept["wina"]["rows"]
        assert [(row["method"], row["sparsity"], row.get("allocation"), row.get("mode"))
                for row in rows] == [
            ("none", 0.0, None, None),
            *((method, sparsity, allocation, "top-k") for allocation in ("greedy", "uniform")
              for method in ("wina", "teal") for sparsity in (0.1, 0.5)),
            ("wina", 0.5, "greedy", "threshold"), ("teal", 0.5, "greedy", "threshold")]
        model = read_model(model_path)
        tokenizer = Tokenizer(model.vocabulary)
        texts = read_corpus(corpus)["heldout"][:2]
        whole = evaluate(model, [tokenizer.encode(text) for text in texts],
                         sum(len(text.encode()) for text in texts), "lmul", workers=1)
        assert rows[0]["bits_per_byte"] == pytest.approx(whole.bits_per_byte[0], abs=1e-5)
        assert rows[0]["loss_percent"] == 0
        for row in rows[1:]:
            assert row["trits_read"] <= 1 - row["dropped"] + 1e-4 or row["mode"] == "threshold"

    def test_wina_is_continued(self, monkeypatch, tmp_path, model_path, corpus):
        """Rows that are kept stay as they are, and without --keep none does."""
        monkeypatch.setattr(records, "RESULTS", tmp_path)
        monkeypatch.setattr("host.cli.experiment.wina._points", lambda *_: [
            ({"method": method, "sparsity": 0.5}, {}) for method in ("none", "x", "y")])
        monkeypatch.setattr(common, "CALIBRATION_DOCUMENTS", 1)
        monkeypatch.setattr(common, "CALIBRATION_TOKENS", 8)
        command = ["experiment", "wina", "--model", str(model_path), "--corpus", str(corpus),
                   "--documents", "1", "--workers", "1"]
        assert cli.main(command) == 0
        record = records.read_record("wina")
        first, second, *others = record["rows"]
        del first["sources"]
        (tmp_path / "wina.json").write_text(json.dumps(record | {"rows": [first, second]}))
        assert cli.main([*command, "--keep"]) == 0
        assert records.read_record("wina")["rows"] == [first, second, *others]
        assert cli.main(command) == 0
        assert records.read_record("wina")["rows"] == [
            first | {"sources": second["sources"]}, second, *others]

    def test_cycles_of_stale_rows(self):
        """A row is of two experiments: it gets no new hash while the first one's is stale."""
        now = records.source_hash(*records.MAKERS["host experiment wina"].sources({}))
        found = {("wina", 0.5): {"cycles": 7}}
        for sources, expected in ((now, None), ("x", "x"), (None, "")):
            hashed = {} if sources is None else {"sources": sources}
            rows = [{"method": "none", "sources": now},
                    {"method": "wina", "sparsity": 0.5, "allocation": "uniform", "mode": "top-k",
                     **hashed},
                    {"method": "wina", "sparsity": 0.5, "allocation": "greedy", "mode": "top-k"}]
            changed, fresh = cycles._with_cycles(rows, found, {"cycles": 9})
            assert [row["cycles"] for row in changed] == [9, 7]
            assert fresh == (expected is None)
            assert changed[1].get("sources") == expected

    def test_rotation(self, kept, monkeypatch, tmp_path):
        model = random_llama()
        write_llama2c(tmp_path / "small.bin", model, tied=True)
        monkeypatch.setattr(rotation, "_SAMPLE_TOKENS", 12)
        assert cli.main(["experiment", "rotation", str(tmp_path / "small.bin")]) == 0
        rows = kept["wina_rotation"]["rows"]
        assert len(rows) == 3 * 4 * 2
        for wina, teal in zip(rows[::2], rows[1::2], strict=True):
            assert (wina["method"], teal["method"]) == ("wina", "teal")
            assert wina["products"] == teal["products"]
        rotated = [row for row in rows if row["weights"] == "float, rotated"]
        layer = 32 * 32 * 2 + 2 * 8 * 32 + 3 * 44 * 32
        for wina, teal in zip(rotated[::2], rotated[1::2], strict=True):
            assert wina["error_key"] == 0 < teal["error_key"]    # of rank 8, and 11 are kept
            assert wina["error_gate"] < teal["error_gate"]
            assert wina["products"] == pytest.approx(
                1 - wina["sparsity"] + 5 * 32 * 32 / (3 * layer), abs=1e-4)
        ternary = [row for row in rows if row["weights"] == "ternary"]
        assert all(row["spread_key"] < first["spread_key"] for row, first
                   in zip(ternary, rows, strict=False))

    def test_l1_of_no_report(self, capsys, tmp_path):
        for text in ("hello", "[]", '{"settings": {"l1": 0}}'):
            (tmp_path / "x.json").write_text(text)
            assert run(capsys, "experiment", "l1", tmp_path / "x.json") == (
                1, "", f"tally experiment l1: {tmp_path}/x.json: not a report of 'python -m "
                       f"host train --report'\n")

    def test_rotation_of_no_model(self, capsys, tmp_path):
        assert cli.main(["experiment", "rotation", str(tmp_path / "none.bin")]) == 1
        assert capsys.readouterr().err == (f"tally experiment rotation: {tmp_path}/none.bin:"
                                           f" No such file or directory\n")

    def test_l1(self, kept, tmp_path):
        for l1, bits in ((0.0, 1.5), (0.1, 1.6)):
            (tmp_path / f"{l1}.json").write_text(json.dumps({
                "settings": {"l1": l1, "seed": 1, "corpus": "here"},
                "rows": [{"arithmetic": "quantized", "bits_per_byte": bits,
                          "density": [0.1, 0.3]}]}))
        assert cli.main(["experiment", "l1", str(tmp_path / "0.0.json"),
                         str(tmp_path / "0.1.json")]) == 0
        assert kept["l1"]["rows"] == [
            {"l1": l1, "arithmetic": "quantized", "bits_per_byte": bits, "density_mean": 0.2,
             "density_least": 0.1, "density_most": 0.3} for l1, bits in ((0.0, 1.5), (0.1, 1.6))]
        assert kept["l1"]["configuration"] == {"seed": 1}


def test_masked_codes_keep_the_scale(model):
    """A mask never changes the exponent, also where it drops the largest element."""
    x = np.full((1, 256), 0x3F80, np.uint16)
    codes = quantize(x)
    assert codes.values.max() == 64
    norms = np.zeros(256, np.uint16)
    norms[5] = 1
    masked = Mask(norms, 1)(codes.values)
    assert np.flatnonzero(masked).tolist() == [5]
    assert masked[0, 5] == 64
