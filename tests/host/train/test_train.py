"""Training, where PyTorch is installed: the recurrence, the roundings, and the file at the end."""

import json

import numpy as np
import pytest

from host.cli import main as cli
from host.models.registry import read_model
from host.text.tokenizer import Tokenizer
from sim.golden.arithmetic import ARITHMETICS
from sim.golden.evaluate import ExactProducts, GoldenLM, model_matrices
from tests.host.corpus_examples import write_corpus

torch = pytest.importorskip("torch", reason="PyTorch (the optional extra 'train') is missing")
network = pytest.importorskip("host.train.network")
scan = pytest.importorskip("host.train.scan")
evaluation = pytest.importorskip("host.train.evaluate")
data = pytest.importorskip("host.train.data")
export = pytest.importorskip("host.train.export")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Make a corpus directory of 400 short documents; some digests make calibration text."""
    rng = np.random.default_rng(3)
    words = "the king queen went to wood and said old fox bear little house good day".split()
    documents = [f"{n}. " + " ".join(rng.choice(words, 60)) for n in range(400)]
    return write_corpus(tmp_path_factory.mktemp("corpus"), documents,
                        held_out=lambda n: n % 50 == 0)


def test_recurrence_equals_its_definition():
    generator = torch.Generator().manual_seed(1)
    z, c = (torch.rand(2, 32, 16, generator=generator, dtype=torch.float64) for _ in range(2))
    keep = (torch.rand(2, 32, generator=generator) > 0.1).double()
    before = torch.rand(2, 16, generator=generator, dtype=torch.float64)
    states = scan.recurrence(z, c, keep, before)
    for step in range(32):
        before = before * keep[:, step, None]
        before = before + z[:, step] * (c[:, step] - before)
        torch.testing.assert_close(states[:, step], before)


def test_activations_round_to_the_smallest_power_of_two_that_fits():
    vectors = torch.tensor([[127.0, 5.4], [127.5, 1.2], [63.5, 0.3], [0.0, 0.0], [128.0, -254.0]])
    expected = torch.tensor([[127.0, 5.0], [128.0, 2.0], [63.5, 0.5], [0.0, 0.0], [128.0, -254.0]])
    codes = network.Sites(quantize=True).codes(vectors)
    torch.testing.assert_close(codes, expected, rtol=0, atol=0)


def test_roundings_pass_gradients_on():
    x = torch.tensor([[100.3, 0.2]], requires_grad=True)
    (network.Sites(quantize=True).codes(x) * torch.tensor([[2.0, 3.0]])).sum().backward()
    assert x.grad.tolist() == [[2.0, 3.0]]


def test_the_exported_network_is_the_golden_model(corpus):
    """The float arithmetic of the golden model and of the trainer agree to float32 rounding."""
    vocabulary, parts = data.prepare(corpus, 300)
    torch.manual_seed(2)
    trained = network.Network(network.Shape(len(vocabulary.tokens), 256, 2, 512))
    model = export.to_model(trained, vocabulary, {"float": 1.0, "lmul": 1.0}, "random", {})
    # The file rounds the head's scale and the biases to bf16; here both hold exactly.
    assert model.logit_scales["float"] * trained.shape.embedding_gain == model.embedding_scale
    with torch.no_grad():
        trained.forget_bias.copy_(trained.forget_bias.bfloat16())
    tokens = parts["heldout"].split()[0][:40].astype(np.int64)[None]
    states = torch.zeros(2, 1, 256)
    with torch.no_grad():
        x, embedding, scale, *_ = trained(torch.from_numpy(tokens), torch.ones(1, 40), states,
                                          evaluation.ARITHMETICS["float"])
        expected = network.head(x, embedding, scale, evaluation.ARITHMETICS["float"])[0].numpy()
    golden = GoldenLM(model, ARITHMETICS["float"], ExactProducts(model_matrices(model)))
    actual = golden.logits(golden.forward(tokens, golden.start()))
    assert np.abs(actual - expected).max() < 1e-4 * np.abs(expected).max()


def test_a_smoke_run_writes_a_model_and_a_report(corpus, tmp_path, capsys):
    assert cli.main(["train", "--corpus", str(corpus), "--out", str(tmp_path / "smoke.gguf"),
                     "--smoke", "--device", "cpu", "--report", str(tmp_path / "smoke.json"),
                     "--cache", str(tmp_path / "tokens.npz")]) == 0
    model = read_model(tmp_path / "smoke.gguf")
    assert (model.width, model.ffn_width, len(model.layers)) == (256, 256, 1)
    assert model.metadata["license"] == "Apache-2.0"
    text = "the old king went to the wood"
    tokenizer = Tokenizer(model.vocabulary)
    assert tokenizer.decode(tokenizer.encode(text)) == text
    rows = json.loads((tmp_path / "smoke.json").read_text())["rows"]
    assert [row["arithmetic"] for row in rows] == ["quantized", "float"]
    losses = [float(line.split("loss ")[1].split(",")[0])
              for line in capsys.readouterr().out.splitlines() if "loss" in line]
    assert losses[-1] < losses[0] - 1
    assert all(0 < row["bits_per_byte"] < 8 for row in rows)
    vocabulary, _ = data.prepare(tmp_path / "nowhere", 0, cache=tmp_path / "tokens.npz")
    assert vocabulary == model.vocabulary


def test_missing_corpus(tmp_path, capsys):
    assert cli.main(["train", "--corpus", str(tmp_path), "--out", str(tmp_path / "m.gguf")]) == 1
    error = capsys.readouterr().err
    assert error.startswith("tally train: ")
    assert error.endswith("splits.tsv: No such file or directory\n")
