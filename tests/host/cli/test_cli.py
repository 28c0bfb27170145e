"""The command line on a tiny random model: what it prints, and one line for each mistake."""

import dataclasses
import itertools
import json
import re
from pathlib import Path

import numpy as np
import pytest

import host.measure.speed
from host.cli import main as cli
from host.cli.options import DEFAULT_MODEL
from host.compiler.compile import compile_model
from host.devices.accelerator import GoldenAccelerator
from host.devices.engine import GoldenEngine
from host.devices.generate import AcceleratorReader, EngineReader, Generator
from host.devices.simulated import SimulatedAccelerator
from host.files.image import read_image, write_image
from host.files.tensors import to_bf16
from host.measure.evaluate import evaluate, fit_logit_scale
from host.models.examples import tiny_model
from host.models.mmfreelm import write_model
from host.models.registry import read_model
from host.text.sampling import Sampler
from host.text.tokenizer import Tokenizer
from hw import records
from hw.config import EngineConfig
from sim.golden.arithmetic import ARITHMETICS
from sim.golden.evaluate import ExactProducts, GoldenLM, model_matrices
from tests.host.accelerator_examples import MISSING, SMALL
from tests.host.corpus_examples import write_corpus

SIMULATED = pytest.param(
    "simulated", marks=pytest.mark.skipif(bool(MISSING), reason="; ".join(MISSING)))


@pytest.fixture(scope="module")
def model_path(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "tiny.gguf"
    write_model(path, tiny_model())
    return str(path)


@pytest.fixture(scope="module")
def image_path(tmp_path_factory):
    path = tmp_path_factory.mktemp("image") / "tiny.tally"
    write_image(path, compile_model(tiny_model(layers=1), SMALL))
    return str(path)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Documents of which three are held out; some digests make calibration text."""
    documents = [f"the story number {n}, " + "the end " * (n % 9) for n in range(200)]
    documents = [document.strip() for document in documents]
    return write_corpus(tmp_path_factory.mktemp("corpus"), documents, held_out=lambda n: n < 3)


def run(capsys, *arguments):
    """Exit status and what was printed."""
    try:
        status = cli.main([str(argument) for argument in arguments])
    except SystemExit as exit_:
        status = exit_.code
    captured = capsys.readouterr()
    return status, captured.out, captured.err


class TestRun:
    def test_text_and_table(self, capsys, model_path):
        status, out, err = run(capsys, "run", model_path, "the the", "--device",
                               "engine-golden", "--tokens", 5, "--seed", 3)
        assert (status, err) == (0, "")
        assert out.startswith("the the")
        model = read_model(model_path)
        tokenizer = Tokenizer(model.vocabulary)
        generator = Generator(EngineReader(model, GoldenEngine(EngineConfig())))
        tokens = list(generator.generate(tokenizer.encode("the the"), 5, Sampler(seed=3)))
        assert "".join(out[7:].split("\n\n")[0].split()) == "".join(
            tokenizer.decode(tokens).split())
        for label, value in (("Matrix products", r"\d+ +all equal to the golden model"),
                             ("Tokens", r"5 +after 4 of the prompt"),
                             ("Cycles per token, text", r"[\d,]+ +derived"),
                             ("Tokens a second, products",
                              r"[\d.,]+ +derived, at a clock of 80 MHz"),
                             ("Weight port used, text", r"[\d.]+% +derived"),
                             ("Bytes moved per token", r"[\d,.]+ KB +derived"),
                             ("First token after", r"[\d.]+ s +measured"),
                             ("Density of the FFN", r"[\d.]+% +derived")):
            assert re.search(f"{label} +{value}", out), label

    @pytest.mark.parametrize("device", ["golden", "engine-golden"])
    def test_greedy_is_temperature_zero(self, capsys, model_path, device):
        first = run(capsys, "run", model_path, "--device", device, "--tokens", 4, "--greedy")
        second = run(capsys, "run", model_path, "--prompt", "Once upon a time", "--device",
                     device, "--tokens", 4, "--temperature", 0)
        assert first[1].split("\n\n")[0] == second[1].split("\n\n")[0]

    def test_no_speed_without_equality(self, capsys, model_path, monkeypatch):
        """One wrong integer in the last matrix: one line, no table."""
        product = GoldenEngine._product

        def wrong(self, handle, columns, values):
            results, cycles, transfers = product(self, handle, columns, values)
            if handle == 14:
                results[0, 7] ^= 1
            return results, cycles, transfers

        monkeypatch.setattr(GoldenEngine, "_product", wrong)
        status, out, err = run(capsys, "run", model_path, "the", "--device", "engine-golden")
        assert status == 1
        assert re.fullmatch(r"tally run: Matrix head row 7 \(activation vector 0 of "
                            r"1\) must give -?\d+, but the golden model gave -?\d+\n", err)
        assert out == ""

    def test_control_c(self, capsys, model_path, monkeypatch):
        def interrupt(self, *arguments):
            raise KeyboardInterrupt

        monkeypatch.setattr(GoldenEngine, "_product", interrupt)
        status, _, err = run(capsys, "run", model_path, "the", "--device", "engine-golden")
        assert (status, err) == (130, "tally run: stopped by Ctrl-C\n")

    @pytest.mark.parametrize(("arguments", "message"), [
        (["nothing.gguf"], "run: nothing.gguf: No such file or directory; if it is a prompt, give "
                           "it with --prompt"),
        (["./nofile"], "run: nofile: No such file or directory; if it is a prompt, give it with "
                       "--prompt"),
        (["nothing", "a prompt"], "run: nothing: No such file or directory"),
        ([str(DEFAULT_MODEL), "b", "c"],
         "run: Prompt must be one argument, not 2; put it in quotes"),
        (["b", "--prompt", "c"],
         "run: Prompt must be given once, not as an argument and with --prompt"),
        ([" "], "run: Prompt must not be empty"),
        (["--prompt", ""], "run: Prompt must not be empty"),
        (["a\udcffb"], "run: Prompt must be UTF-8, but character 2 is the byte 0xff"),
        (["--bogus"], "run: '--bogus' is not an option (try --help)"),
        (["--tokns=3"], "run: '--tokns' is not an option (try --tokens, --top-k)"),
        (["the", "--tokens", "3", "end"],
         "run: unexpected argument 'end': a text of several words needs quotes, and arguments come "
         "before options"),
        (["--tokens", "0"], "run: argument --tokens: must be an integer of at least 1, not '0'"),
        (["--tokens", "x"], "run: argument --tokens: must be an integer of at least 1, not 'x'"),
        (["--temperature", "-1"],
         "run: argument --temperature: must be a number of at least 0, not '-1'"),
        (["--temperature", "nan"],
         "run: argument --temperature: must be a number of at least 0, not 'nan'"),
        (["--temperature", "hot"],
         "run: argument --temperature: must be a number of at least 0, not 'hot'"),
    ])
    def test_mistakes(self, capsys, arguments, message):
        status, out, err = run(capsys, "run", *arguments)
        assert status in (1, 2)
        assert (out, err) == ("", f"tally {message}\n")

    def test_unknown_device(self, capsys, model_path):
        """The model is not even read."""
        status, _, err = run(capsys, "run", "absent.gguf", "the", "--device", "fpga")
        assert (status, err) == (2, "tally run: argument --device: 'fpga' is not a device (try "
                                    "'simulated', 'golden', 'serial:PORT', 'engine-simulated', "
                                    "'engine-golden', 'engine-serial:PORT')\n")

    def test_not_a_model(self, capsys, tmp_path):
        path = tmp_path / "text.gguf"
        path.write_text("hello")
        status, _, err = run(capsys, "run", path)
        assert status == 1
        assert err == (f"tally run: {path}: neither a GGUF file nor one of llama2.c: it begins "
                       f"with b'hell' and has 5 bytes\n")


class TestRunOnAccelerator:
    @pytest.mark.parametrize("device", ["golden", SIMULATED])
    def test_image(self, capsys, image_path, device):
        """The text of both devices is that of TokenGenerator; the simulated one is checked."""
        status, out, err = run(capsys, "run", image_path, "the the", "--device", device,
                               "--tokens", 3, "--seed", 3, "--top-k", 4, "--clock", 100)
        assert (status, err) == (0, "")
        cycles = int(re.search(r"Cycles per token +([\d,]+)", out)[1].replace(",", ""))
        speed = float(re.search(r"Tokens a second +([\d,.]+)", out)[1].replace(",", ""))
        assert speed == pytest.approx(1e8 / cycles, rel=1e-4)
        assert max(map(len, out.partition("\n\n")[2].splitlines())) <= 80
        image = read_image(image_path)
        accelerator = GoldenAccelerator(SMALL)
        accelerator.load(image)
        tokenizer = Tokenizer(image.vocabulary)
        tokens = list(Generator(AcceleratorReader(accelerator, image, image.vocabulary)).generate(
            tokenizer.encode("the the"), 3, Sampler(top_k=4, seed=3)))
        assert "".join(out[7:].split("\n\n")[0].split()) == "".join(
            tokenizer.decode(tokens).split())
        evidence = "derived" if device == "golden" else "simulated"
        rows = [("Tokens", r"3 +after 4 of the prompt"),
                ("Tokens a second", rf"[\d.,]+ +{evidence}, at a clock of 100 MHz"),
                ("First token after", r"[\d.]+ s +measured")]
        if device == "simulated":
            rows += [("Logits delivered", rf"{6 * SMALL.top_k} +all equal to the golden machine"),
                     ("Cycles per token", r"[\d,]+ +simulated"),
                     (r"\.\.\. by the formula", r"[\d,]+ +derived; [+-]0\.\d\d%"),
                     ("Trits added per cycle", r"\d+\.\d +simulated, by 16 lanes"),
                     ("Memory port, useful", r"\d+\.\d% +simulated"),
                     ("Simulated cycles", r"[\d,]+ / s +measured")]
        else:
            rows.append(("Cycles per token", r"[\d,]+ +derived"))
            assert "equal" not in out
        for label, value in rows:
            assert re.search(f"{label} +{value}", out), label

    @pytest.mark.skipif(bool(MISSING), reason="; ".join(MISSING))
    def test_no_speed_without_equality(self, capsys, image_path, monkeypatch):
        """One wrong logit of the third pass: one line, no table."""
        token = SimulatedAccelerator._token
        passes = itertools.count()

        def wrong(self, *arguments):
            result = token(self, *arguments)
            if next(passes) == 2:
                result.top_k[0].values[1] ^= 1
            return result

        monkeypatch.setattr(SimulatedAccelerator, "_token", wrong)
        status, out, err = run(capsys, "run", image_path, "the", "--tokens", 2)
        assert status == 1
        assert re.fullmatch(r"tally run: TOP_K 0 of pass 2 \(token \d+\) must deliver row "
                            r"(\d+) with -?\d+ in place 1, but the simulated accelerator gave row "
                            r"\1 with -?\d+\n", err)
        assert "Cycles" not in out

    @pytest.mark.parametrize(("arguments", "message"), [
        (["--top-k", "6"], "Option --top-k must be from 1 to 5 on device 'golden', which delivers "
                           "so many logits, not 6"),
        (["--top-k", "0"], "Option --top-k must be from 1 to 5 on device 'golden', which delivers "
                           "so many logits, not 0"),
        (["--device", "engine-golden"], "{path}: an image needs an accelerator (try --device "
                                         "simulated, golden or serial:PORT)"),
        (["--dense"], "{path}: option --dense needs the model that the image was made of, since "
                      "the image is compiled already"),
        (["--context", "16"], "{path}: option --context needs the model that the image was made "
                              "of, since the image is compiled already"),
    ])
    def test_mistakes(self, capsys, image_path, arguments, message):
        status, out, err = run(capsys, "run", image_path, "the", "--device", "golden", *arguments)
        assert (status, out) == (1, "")
        assert err == f"tally run: {message.format(path=image_path)}\n"

    @pytest.mark.parametrize(("end", "wrong"), [(2000, "truncated: the header"),
                                                (-3, "truncated: part head"),
                                                (None, "damaged: part head")])
    def test_damaged_image(self, capsys, image_path, tmp_path, end, wrong):
        data = bytearray(Path(image_path).read_bytes())
        data[-5] ^= 1
        path = tmp_path / "damaged.tally"
        path.write_bytes(data[:end])
        status, out, err = run(capsys, "run", path, "the")
        assert (status, out) == (1, "")
        assert re.fullmatch(rf"tally run: {path}: {wrong} .*\n", err)

    def test_no_vocabulary(self, capsys, tmp_path):
        path = tmp_path / "mute.tally"
        image = compile_model(tiny_model(layers=1), SMALL)
        write_image(path, dataclasses.replace(image, vocabulary=None))
        status, _, err = run(capsys, "run", path, "the")
        assert (status, err) == (1, f"tally run: {path}: no vocabulary in it; give the "
                                    f"model that it was made of\n")


@pytest.mark.skipif(bool(MISSING), reason="; ".join(MISSING))
def test_speed(capsys, image_path, monkeypatch, tmp_path):
    monkeypatch.setattr(records, "RESULTS", tmp_path)
    monkeypatch.setattr(host.measure.speed, "time_fresh_demo", lambda: 61.25)
    status, out, err = run(capsys, "speed", image_path, "--tokens", 2, "--record")
    assert (status, err) == (0, "")
    assert re.search(r"Cycles per token +[\d,]+ +simulated; [\d,]+ to [\d,]+", out)
    token = json.loads((tmp_path / "token.json").read_text())["rows"][0]
    assert (token["model"], token["port_bytes"], token["lanes"]) == ("tiny", 4, 16)
    assert token["least"] <= token["cycles"] <= token["most"]
    assert token["formula_cycles"] == pytest.approx(token["cycles"], rel=0.01)
    assert 0.5 < token["port_utilization"] < 1
    simulator = json.loads((tmp_path / "simulator.json").read_text())["rows"][0]
    assert simulator["seconds_to_first_token"] == 61.2
    assert simulator["cycles_per_second"] > 1000


class TestGenerate:
    def test_against_token_by_token(self):
        """The prompt goes through in batches; greedy tokens are those of the plain golden model."""
        model = tiny_model()
        reader = EngineReader(model, GoldenEngine(EngineConfig(max_batch=3)))
        generator = Generator(reader)
        prompt = [5, 9, 80, 3, 3, 17, 200]
        tokens = list(generator.generate(prompt, 6, Sampler(temperature=0)))
        lm = GoldenLM(model, ARITHMETICS["lmul"], ExactProducts(model_matrices(model)))
        state, expected = lm.start(), []
        for token in [0, *prompt]:
            hidden = lm.forward(np.array([[token]]), state)
        for _ in range(6):
            expected.append(int(lm.logits(hidden)[0].argmax()))
            hidden = lm.forward(np.array([[expected[-1]]]), state)
        assert tokens == expected
        assert generator.prompt.tokens == 8
        assert generator.text.tokens == 5
        counters = reader.driver.device.counters
        assert generator.prompt.counters + generator.text.counters == counters
        # 3 passes for 8 vectors of 14 matrices and the head once; then 15 matrices a token.
        assert counters.products == 3 * 14 + 1 + 5 * 15

    def test_ends_with_the_document(self):
        model = tiny_model()
        reader = EngineReader(model, GoldenEngine(EngineConfig()))
        reader._lm.logits = lambda hidden: 1e3 * np.eye(1, model.vocab)     # end of document
        assert list(Generator(reader).generate([5], 6, Sampler())) == []


class TestSampler:
    logits = np.array([0.0, 3.0, 1.0, 3.0, -2.0])

    def test_greedy_takes_the_first_of_equals(self):
        assert Sampler(temperature=0).choices()(self.logits) == 1

    def test_top_k(self):
        choose = Sampler(temperature=100.0, top_k=2).choices()
        assert {choose(self.logits) for _ in range(50)} == {1, 3}

    def test_distribution(self):
        choose = Sampler(temperature=2.0, top_k=0, seed=7).choices()
        drawn = np.bincount([choose(self.logits) for _ in range(20000)], minlength=5) / 20000
        expected = np.exp(self.logits / 2)
        np.testing.assert_allclose(drawn, expected / expected.sum(), atol=0.015)

    def test_seed(self):
        first, again, other = (Sampler(seed=seed).choices() for seed in (4, 4, 5))
        draws = [[choose(self.logits) for _ in range(30)] for choose in (first, again, other)]
        assert draws[0] == draws[1] != draws[2]


def slow_bits(model, documents, arithmetic, logit_scale):
    """Bits of all tokens, one document and one token after another."""
    lm = GoldenLM(model, ARITHMETICS[arithmetic], ExactProducts(model_matrices(model)))
    end, bits = model.vocabulary.end_of_document, 0.0
    for document in documents:
        state = lm.start()
        for read, target in zip([end, *document], [*document, end], strict=True):
            logits = lm.logits(lm.forward(np.array([[read]]), state), logit_scale)[0]
            logits = logits.astype(np.float64) - logits.max()
            bits += (np.log(np.exp(logits).sum()) - logits[target]) / np.log(2)
    return bits


class TestEvaluate:
    @pytest.mark.parametrize("arithmetic", ["lmul", "float"])
    def test_against_token_by_token(self, arithmetic):
        model = tiny_model(layers=1)
        rng = np.random.default_rng(1)
        documents = [rng.integers(1, 259, length).tolist() for length in (30, 3, 17, 1, 100)]
        scales = (to_bf16(0.011), to_bf16(0.005))
        result = evaluate(model, documents, 500, arithmetic, logit_scales=scales, workers=1)
        for scale, bits in zip(scales, result.bits_per_byte, strict=True):
            assert bits == pytest.approx(slow_bits(model, documents, arithmetic, scale) / 500,
                                         rel=1e-5)
        assert (result.documents, result.tokens, result.bytes) == (5, 156, 500)
        assert {label: live.sum() for label, live in result.live.items()} == dict.fromkeys(
            ("blk.0.mix_in", "blk.0.mix_out", "blk.0.ffn_in", "blk.0.ffn_hidden"), 156)

    def test_workers_share_the_documents(self):
        model = tiny_model(layers=1)
        documents = [[n + 1] * (5 * n + 1) for n in range(7)]
        reported = []
        one = evaluate(model, documents, 100, "lmul", workers=1)
        two = evaluate(model, documents, 100, "lmul", workers=2, report=reported.append)
        assert two.bits_per_byte == pytest.approx(one.bits_per_byte, rel=1e-9)
        for name, live in one.live.items():
            np.testing.assert_array_equal(two.live[name], live)

    def test_density(self):
        model = tiny_model(layers=2)
        result = evaluate(model, [[4, 5, 6]], 3, "lmul", workers=1)
        elements = model.ffn_width
        for label in result.hidden:
            result.live[label][:] = 0
        result.live["blk.0.ffn_hidden"][[0, 10, elements]] = (98, 1, 1)
        result.live["blk.1.ffn_hidden"][128] = 100
        assert result.layer_density(0) == pytest.approx(
            {"density": (10 + elements) / 100 / elements, "density_p99": 10 / elements,
             "density_max": 1.0})
        assert result.layer_density(1) == {"density": 0.25, "density_p99": 0.25,
                                           "density_max": 0.25}
        assert result.density == pytest.approx((0.25 + (10 + elements) / 100 / elements) / 2)

    def test_errors(self):
        model = tiny_model(layers=1)
        with pytest.raises(ValueError, match=r"^Documents must not be empty$"):
            evaluate(model, [], 1, "lmul")
        with pytest.raises(ValueError, match=r"^Model tiny has no logit scale for arithmetic "
                                             r"'exact'; fit it with --fit$"):
            evaluate(model, [[1]], 1, "exact")

    def test_fit(self):
        """A parabola in the logarithm, whose minimum lies outside the first grid."""
        calls = []

        def losses(scales):
            calls.append(scales)
            return [(np.log(scale) - np.log(0.05)) ** 2 for scale in scales]

        assert fit_logit_scale(losses, 0.01) == pytest.approx(0.05, rel=2 ** -8)
        assert len(calls) > 3
        assert all(to_bf16(scale) == scale for call in calls for scale in call)

    def test_fit_without_minimum(self):
        """An untrained model is best with no logits at all: the search gives up."""
        assert 0 < fit_logit_scale(lambda scales: scales, 0.01) < 0.01 / 1.24 ** 7

    def test_command(self, capsys, model_path, corpus, tmp_path):
        results, fitted = tmp_path / "model.json", tmp_path / "fitted.gguf"
        status, out, err = run(capsys, "evaluate", model_path, "--corpus", corpus, "--fit",
                               "--save", fitted, "--json", results, "--workers", 1,
                               "--arithmetic", "lmul,exact")
        assert (status, err) == (0, "")
        assert re.search(r"tiny on held-out text: 3 documents, \d+ tokens, \d+ bytes", out)
        record = json.loads(results.read_text())
        assert set(record) == {"command", "versions", "configuration", "rows"}
        rows = record["rows"]
        assert [row["arithmetic"] for row in rows[:2]] == ["golden", "exact"]
        assert len(rows) == 2 + 2 * 2
        assert (rows[0]["vectors"], rows[0]["activations"]) == ("bf16", "int8")
        assert rows[0]["text"] == "held-out"
        assert rows[2]["layer"] == 0
        model = read_model(fitted)
        assert model.logit_scales["lmul"] == rows[0]["logit_scale"]
        assert model.logit_scales["exact"] == rows[1]["logit_scale"]
        assert f"{rows[1]['bits_per_byte']:.4f}" in out

    @pytest.mark.parametrize(("arguments", "message"), [
        ([], "evaluate: the following arguments are required: --corpus"),
        (["--corpus", "x", "--arithmetic", "fp8"],
         "evaluate: argument --arithmetic: 'fp8' is not an arithmetic (try 'lmul', 'mitchell', "
         "'lmul_attention', 'exact', 'lmul_float32', 'exact_float32', 'float', 'all')"),
        (["--corpus", "x", "--save", "y"],
         "evaluate: Option --save must come with --fit, which finds what there is to save"),
        (["--corpus", "x", "--documents", "0"],
         "evaluate: argument --documents: must be an integer of at least 1, not '0'"),
    ])
    def test_mistakes(self, capsys, arguments, message):
        status, out, err = run(capsys, "evaluate", *arguments)
        assert status in (1, 2)
        assert (out, err) == ("", f"tally {message}\n")

    def test_no_corpus(self, capsys, model_path, tmp_path):
        status, _, err = run(capsys, "evaluate", model_path, "--corpus", tmp_path)
        assert status == 1
        assert err == (f"tally evaluate: {tmp_path}: must hold plain texts (*.txt) or "
                       f"splits.tsv\n")

    def test_no_logit_scale(self, capsys, model_path, corpus):
        status, _, err = run(capsys, "evaluate", model_path, "--corpus", corpus, "--arithmetic",
                             "exact")
        assert status == 1
        assert err == (f"tally evaluate: {model_path}: no logit scale for arithmetic "
                       f"'exact'; find it with --fit\n")

    def test_unwritable(self, capsys, model_path, corpus, tmp_path):
        path = tmp_path / "missing" / "model.json"
        status, _, err = run(capsys, "evaluate", model_path, "--corpus", corpus, "--json", path,
                             "--documents", 1, "--arithmetic", "float")
        assert (status, err) == (2, f"tally evaluate: argument --json: '{path}' must be a file in "
                                    f"a folder that exists\n")


def test_doctor(capsys):
    status, out, err = run(capsys, "doctor")
    assert (status, err) == (0, "")
    assert "verilator" in out
    assert "amaranth" in out


def test_no_command(capsys):
    status, _, err = run(capsys)
    assert (status, err) == (2, "tally: the following arguments are required: COMMAND\n")
