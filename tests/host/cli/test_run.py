"""``tally run``: which argument is the model and which the prompt, and what is refused at once."""

import argparse
import os
import subprocess
import sys
from pathlib import Path

import pytest

from host.cli.main import main
from host.cli.options import DEFAULT_MODEL
from host.cli.run import DEFAULT_PROMPT, _model_and_prompt, add_arguments
from host.compiler.compile import compile_fitted, compile_model
from host.devices.accelerator import GoldenAccelerator
from host.devices.engine import GoldenEngine
from host.devices.errors import DeviceError
from host.devices.generate import AcceleratorReader, EngineReader, Generator
from host.errors import UserError
from host.files.image import write_image
from host.models.examples import llama_gguf, llama_tensors, tiny_model
from host.models.mmfreelm import write_model
from host.models.registry import read_model
from host.text.sampling import Sampler
from hw.config import AcceleratorConfig, EngineConfig
from tests.host.accelerator_examples import SMALL


def chosen(*arguments):
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return _model_and_prompt(parser.parse_args(list(arguments)))


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Work in a folder with a model, a checkpoint and a folder of something else."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model.gguf").touch()
    (tmp_path / "plain").touch()
    (tmp_path / "checkpoint").mkdir()
    (tmp_path / "checkpoint" / "config.json").touch()
    (tmp_path / "hw").mkdir()


@pytest.mark.usefixtures("folder")
class TestModelOrPrompt:
    @pytest.mark.parametrize("path", ["model.gguf", "plain", "checkpoint", "./plain",
                                      "../{}/model.gguf"])
    def test_paths(self, tmp_path, path):
        path = path.format(tmp_path.name)
        assert chosen(path) == (Path(path), DEFAULT_PROMPT)
        assert chosen(path, "a prompt") == (Path(path), "a prompt")
        assert chosen(path, "plain") == (Path(path), "plain")
        assert chosen(path, "--prompt", "./x") == (Path(path), "./x")

    @pytest.mark.parametrize("prompt", ["once", "Once upon a time.", "model", "x" * 300,
                                        "long " * 20000, "gguf", "a\nb"])
    def test_prompts(self, prompt):
        assert chosen(prompt) == (DEFAULT_MODEL, prompt)
        assert chosen("--prompt", prompt) == (DEFAULT_MODEL, prompt)

    def test_nothing(self):
        assert chosen() == (DEFAULT_MODEL, DEFAULT_PROMPT)

    @pytest.mark.parametrize(("arguments", "message"), [
        (["absent.GGUF"], "absent.GGUF: No such file or directory; if it is a prompt, give it with "
                          "--prompt"),
        (["either/or"], "either/or: No such file or directory; if it is a prompt, give it with "
                        "--prompt"),
        (["absent", "prompt"], "absent: No such file or directory"),
        (["hw"], "hw: a folder without a model (config.json); if it is a prompt, give it with "
                 "--prompt"),
        (["hw", "prompt"], "hw: a folder without a model (config.json)")])
    def test_refused(self, arguments, message):
        with pytest.raises(UserError) as caught:
            chosen(*arguments)
        assert str(caught.value) == message


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    path = tmp_path_factory.mktemp("tiny") / "tiny.gguf"
    write_model(path, tiny_model(layers=1))
    return path


class TestEncodings:
    """As a shell starts the command: bytes go in, and bytes come out."""

    @staticmethod
    def start(tiny, prompt, **environment):
        command = [sys.executable, "-m", "host", "run", tiny, "--device", "golden", "--tokens",
                   "1", "--greedy", "--prompt", prompt]
        return subprocess.run(command, capture_output=True, env=os.environ | environment,
                              cwd=Path(__file__).parents[3], check=False)

    def test_not_utf8(self, tiny):
        found = self.start(tiny, b"caf\xe9")
        assert (found.returncode, found.stdout, found.stderr.decode()) == (
            1, b"", "tally run: Prompt must be UTF-8, but character 4 is the byte 0xe9\n")

    @pytest.mark.parametrize("prompt", ["caf\u00e9", "\U0001f600", "\x1b[31m"])
    def test_utf8_in_a_locale_without_it(self, prompt):
        """Python has kept each byte."""
        typed = prompt.encode().decode("ascii", errors="surrogateescape")
        assert chosen("--prompt", typed) == (DEFAULT_MODEL, prompt)

    def test_emoji_and_escape(self, tiny):
        """An output that lacks a character gets its escape; a pipe gets all others as they are."""
        found = self.start(tiny, "hi \U0001f600 \x1b[31mred", PYTHONIOENCODING="cp1252:strict")
        assert (found.returncode, found.stderr) == (0, b"")
        assert found.stdout.startswith(rb"hi \U0001f600 " + b"\x1b[31mred")
        assert b"on the golden machine" in found.stdout

    @pytest.mark.skipif(sys.platform == "win32", reason="there are no pseudo-terminals")
    def test_escape_on_a_terminal(self, tiny):
        import pty
        ours, theirs = pty.openpty()
        process = subprocess.Popen(
            [sys.executable, "-m", "host", "run", tiny, "--device", "golden", "--tokens", "1",
             "--greedy", "--prompt", "hi \x1b[31mred\x07"], stdout=theirs, stderr=theirs,
            cwd=Path(__file__).parents[3], env=os.environ | {"NO_COLOR": "1", "TERM": "xterm"})
        os.close(theirs)
        data = b""
        while True:
            try:
                data += os.read(ours, 1 << 16)
            except OSError:         # the other end is closed
                break
        os.close(ours)
        assert process.wait() == 0
        assert rb"hi \x1b[31mred\x07" in data
        assert b"\x1b[31m" not in data


MODEL = tiny_model(layers=1)


def readers():
    """Both kinds, with a model in them."""
    image = compile_model(MODEL, SMALL)
    device = GoldenAccelerator(SMALL)
    device.load(image)
    return {"accelerator": AcceleratorReader(device, image, image.vocabulary),
            "engine": EngineReader(MODEL, GoldenEngine(EngineConfig()))}


@pytest.mark.parametrize("kind", ["accelerator", "engine"])
def test_progress_of_the_prompt(kind):
    """It grows while the prompt is read, and both kinds write the same text."""
    shares, reader = [], readers()[kind]
    generator = Generator(reader)
    tokens = list(generator.generate([5, 9, 80], 3, Sampler(temperature=0),
                                     lambda done, what: shares.append(done)))
    assert shares == sorted(set(shares))
    assert shares[0] == 0
    assert shares[-1] < 1
    assert len(shares) == (4 if kind == "accelerator" else 8)
    assert (generator.prompt.tokens, generator.text.tokens) == (4, 2)
    assert tokens == list(Generator(readers()["engine"]).generate([5, 9, 80], 3,
                                                                  Sampler(temperature=0)))


def test_context(monkeypatch):
    """The last token of a text is not read; what does not fit is refused before anything is."""
    reader = readers()["engine"]
    monkeypatch.setattr(reader, "context", 6)
    assert len(list(Generator(reader).generate([5, 9, 80], 3, Sampler(temperature=0)))) == 3
    for prompt, count, advice in (([5, 9, 80], 4, "ask for at most 3"),
                                  ([5] * 6, 1, "shorten the prompt")):
        generator = Generator(reader)
        message = (f"^A prompt of {len(prompt) + 1} tokens and a text of {count} need a context of "
                   f"{len(prompt) + count} tokens, but it has 6; {advice}, or take a larger "
                   f"context$")
        with pytest.raises(DeviceError, match=message):
            generator.generate(prompt, count, Sampler())
        assert generator.prompt.tokens == 0


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    path = tmp_path_factory.mktemp("llama") / "llama.gguf"
    path.write_bytes(llama_gguf(llama_tensors()))
    return str(path)


@pytest.fixture(scope="module")
def image(tmp_path_factory, llama):
    path = tmp_path_factory.mktemp("image") / "llama.tally"
    write_image(path, compile_fitted(read_model(llama), AcceleratorConfig(context=32)))
    return str(path)


class TestRefusedAtOnce:
    """What cannot end well is refused before a model is compiled or a device opened."""

    @pytest.fixture
    def refused(self, monkeypatch, capsys, tiny, llama, image):
        """Return what starts the command and returns its message; nothing that takes long runs."""
        def never(*arguments, **options):
            raise AssertionError("Something that takes long was begun")

        for module, names in (
                ("host.cli.run", ("open_accelerator", "open_engine")),
                ("host.models.llama.LlamaLM", ("_describe",)),
                ("host.models.mmfreelm.TernaryLM", ("_describe",))):
            for name in names:
                monkeypatch.setattr(f"{module}.{name}", never)

        def start(*arguments):
            paths = {"LLAMA": llama, "TINY": str(tiny)}
            assert main(["run", *(paths.get(word, word) for word in arguments)]) == 1
            captured = capsys.readouterr()
            assert captured.out == ""
            return captured.err.removeprefix("tally run: ").rstrip("\n")
        return start

    @pytest.mark.parametrize("device", ["simulated", "golden"])
    @pytest.mark.parametrize(("context", "count", "has"), [
        (["--context", "8"], "7", 8), (["--context", "5"], "7", 8),     # rounded up
        ([], "63", 64), (["--context", "128"], "63", 64)])              # the model's own
    def test_context_of_an_accelerator(self, refused, device, context, count, has):
        assert refused("LLAMA", "hey", "--device", device, "--tokens", count, *context) == (
            f"A prompt of 3 tokens and a text of {count} need a context of {int(count) + 2} "
            f"tokens, but it has {has}; ask for at most {has - 2}, or take a larger context")

    def test_context_of_an_engine(self, refused):
        assert refused("LLAMA", "hey", "--device", "engine-golden", "--tokens", "63") == (
            "A prompt of 3 tokens and a text of 63 need a context of 65 tokens, but it has 64; "
            "ask for at most 62, or take a larger context")

    @pytest.mark.parametrize(("arguments", "message"), [
        (["TINY", "--context", "64"], "Option --context is for transformers, but {path} has no "
                                      "attention: its sequences may have any length"),
        (["TINY", "--top-k", "33"], "Option --top-k must be from 1 to 16 on device 'simulated', "
                                    "which delivers so many logits, not 33"),
        (["TINY", "--prefill", "3"], "Tokens of a prompt that are read together must be a power of "
                                     "two up to 8, not 3"),
        (["LLAMA", "--tokens", "4", "--prefill", "4"],
         "Option --prefill is for models without attention: the prompts of {llama} are read token "
         "by token")])
    def test_options(self, refused, tiny, llama, arguments, message):
        assert refused(*arguments) == message.format(path=tiny, llama=llama)

    def test_context_of_an_image(self, refused, image):
        assert refused(image, "hey", "--tokens", "31", "--device", "golden") == (
            "A prompt of 3 tokens and a text of 31 need a context of 33 tokens, but it has 32; "
            "ask for at most 30, or take a larger context")
