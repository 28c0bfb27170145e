"""The trainer's command line, which needs no PyTorch until it trains."""

import subprocess
import sys
from pathlib import Path

import pytest

from host.cli import main as cli

ROOT = Path(__file__).parents[3]


def run(capsys, *arguments):
    try:
        status = cli.main(["train", "--corpus", "corpus", *arguments])
    except SystemExit as exit_:
        status = exit_.code
    return status, capsys.readouterr().err


def test_pytorch_is_named_where_it_is_missing(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    assert run(capsys, "--out", "m.gguf") == (
        1, "tally train: Training needs PyTorch, an optional extra: pip install -e '.[train]'\n")


def test_only_training_imports_it():
    command = "import sys, host.cli.main; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", command], cwd=ROOT, check=False).returncode == 0


@pytest.mark.parametrize(("arguments", "status", "message"), [
    (["--ffn", "700"], 1, "Option --ffn must be a multiple of 256, not 700"),
    (["--width", "100"], 1, "Option --width must be a multiple of 256, not 100"),
    (["--length", "500"], 1, "Option --length must be a power of two, not 500"),
    (["--batch", "0"], 2, "argument --batch: must be an integer of at least 1, not '0'"),
    (["--out", "nowhere/m.gguf"], 2,
     "argument --out: 'nowhere/m.gguf' must be a file in a folder that exists")])
def test_mistakes(capsys, arguments, status, message):
    assert run(capsys, "--out", "m.gguf", *arguments) == (status, f"tally train: {message}\n")
