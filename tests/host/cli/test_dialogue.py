"""``tally run --chat``: a dialogue from what is typed to what is read again."""

import dataclasses
import io
import re
import signal
import sys

import pytest
from rich.console import Console

from host.cli.chat import converse
from host.cli.main import main
from host.compiler.compile import compile_model
from host.devices.accelerator import GoldenAccelerator
from host.devices.engine import GoldenEngine
from host.devices.generate import AcceleratorReader, EngineReader, Generator
from host.files.image import read_image, write_image
from host.models.examples import llama_gguf, llama_tensors, tiny_model
from host.text.sampling import Sampler
from host.text.tokenizer import Tokenizer
from hw.config import EngineConfig
from tests.host.accelerator_examples import SMALL
from tests.host.chat_examples import CHATML, dialogue, words

MODEL = tiny_model(layers=1)
TEMPLATE = ("{% for message in messages %}{{ message.role[0] + ':' + message.content + '\\n' }}"
            "{% endfor %}a:")


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    """Write a Llama with a short context and a template."""
    path = tmp_path_factory.mktemp("chat") / "llama.gguf"
    path.write_bytes(llama_gguf(llama_tensors(), keys={"tokenizer.chat_template": TEMPLATE}))
    return path


@pytest.fixture
def chat(monkeypatch, capsys, llama):
    """Return what types lines into the command and returns what it wrote."""
    def start(lines, *options, status=0, model=llama):
        monkeypatch.setattr(sys, "stdin", io.StringIO("".join(f"{line}\n" for line in lines)))
        assert main(["run", str(model), "--chat", "--device", "golden", *options]) == status
        return capsys.readouterr()
    return start


class TestCommand:
    def test_answers(self, chat):
        out = chat(["hi", "", "so"], "--tokens", "3", "--greedy").out
        assert out.startswith("Ctrl-C stops an answer, Ctrl-D ends the dialogue.\n")
        assert out.count("The answer ends after 3 tokens; --tokens allows more.") == 2
        assert re.search(r"Tokens +6 +after \d+ of the prompt", out)

    def test_engine(self, chat):
        out = chat(["hi", "so"], "--tokens", "2", "--device", "engine-golden").out
        assert re.search(r"Tokens +4 +after \d+ of the prompt", out)

    def test_not_utf8(self, chat, capsys, llama):
        assert "A message must be UTF-8; this line is not.\n" in chat(["caf\udce9"]).out
        assert main(["run", str(llama), "--chat", "--system", "caf\udce9"]) == 1
        assert capsys.readouterr().err == (
            "tally run: Option --system must be UTF-8, but character 4 is the byte 0xe9\n")

    def test_prompt_is_the_first_message(self, chat):
        assert "\n> hi\n" in chat([], "--tokens", "2", "--prompt", "hi").out

    def test_nothing_said(self, chat):
        assert chat([]).out.split("\n")[1:] == ["", ""]

    def test_context(self, chat):
        """What a full context does is said in one line."""
        out = chat(["x" * 30, "x" * 30, "x" * 300, "hi"]).out
        assert ("The context of 64 tokens is full: the answer ends here, and the dialogue goes on "
                "without its oldest messages.\n") in out
        assert "The context of 64 tokens is full: the 2 oldest messages are left out.\n" in out
        assert ("The message makes a prompt of 305 tokens, but the context has 64 for prompt and "
                "answer; shorten it, or take a larger context\n") in out

    def test_top_k_of_the_hardware(self, chat):
        out = chat(["hi"], "--tokens", "2", "--top-p", "0.9", "--repeat-penalty", "1.1").out
        assert ("The accelerator delivers the 16 largest logits: --top-p and --repeat-penalty "
                "count these tokens alone.\n") in out

    def test_refused(self, chat, capsys, llama, tmp_path):
        bare = tmp_path / "bare.gguf"
        bare.write_bytes(llama_gguf(llama_tensors()))
        assert chat([], status=1, model=bare).err == (
            "tally run: Option --chat: The model has no chat template (key "
            "tokenizer.chat_template); it continues texts, but has learned no dialogue\n")
        wrong = tmp_path / "wrong.gguf"
        wrong.write_bytes(llama_gguf(llama_tensors(), keys={"tokenizer.chat_template": "{% if"}))
        assert "Option --chat: Chat template, line 1: " in chat([], status=1, model=wrong).err
        assert main(["run", str(llama), "--system", "x"]) == 1
        assert capsys.readouterr().err == "tally run: Option --system needs --chat\n"


class Fake:
    """A generator of given answers; Ctrl-C is pressed before token ``at`` of the first."""

    def __init__(self, tokens, at=None, presses=1):
        self.tokens, self.at, self.presses, self.prompts = tokens, at, presses, []

    def length(self, prompt):
        return len(prompt)

    def generate(self, prompt, count, sampler, report, resume):
        self.prompts.append((list(prompt), sampler.seed))
        for index, token in enumerate(self.tokens[:count]):
            if index == self.at and len(self.prompts) == 1:
                for _ in range(self.presses):
                    signal.raise_signal(signal.SIGINT)
            report(1.0, "")
            yield token


@pytest.fixture
def talk(monkeypatch):
    """Return what holds a dialogue with a fake generator, and returns what was written."""
    def start(fake, lines, context=0, limit=10):
        monkeypatch.setattr(sys, "stdin", io.StringIO("".join(f"{line}\n" for line in lines)))
        console = Console(file=io.StringIO(), width=200)
        held, tokenizer = dialogue(context)
        converse(console, fake, held, tokenizer, Sampler(), limit=limit, context=context)
        return console.file.getvalue(), held
    return start


class TestStop:
    """Ctrl-C stops the answer and keeps the dialogue."""

    THE = Tokenizer(words()).encode("so it is")

    def test_during_an_answer(self, talk):
        fake = Fake(self.THE, at=2)
        text, held = talk(fake, ["hi", "on"])
        assert "so\nThe answer is stopped.\nso it is\n" in text
        assert [message["content"] for message in held.messages] == ["hi", "so", "on", "so it is"]
        assert fake.prompts[1][0][:len(fake.prompts[0][0]) + 2] == (
            fake.prompts[0][0] + self.THE[:2])
        assert [seed for _, seed in fake.prompts] == [1, 2]

    def test_before_an_answer(self, talk):
        text, held = talk(Fake(self.THE, at=0), ["hi", "on"])
        assert "The answer is stopped." in text
        assert [message["content"] for message in held.messages] == ["on", "so it is"]

    def test_twice(self, talk):
        with pytest.raises(KeyboardInterrupt):
            talk(Fake(self.THE, at=2, presses=2), ["hi"])

    def test_signals_are_as_before(self, talk):
        before = signal.getsignal(signal.SIGINT)
        talk(Fake(self.THE), ["hi"])
        assert signal.getsignal(signal.SIGINT) is before

    def test_at_the_prompt(self, talk, monkeypatch):
        lines = iter([KeyboardInterrupt, "hi", EOFError])

        def typed(prompt):
            line = next(lines)
            if isinstance(line, str):
                return line
            raise line
        monkeypatch.setattr("builtins.input", typed)
        text, held = talk(Fake(self.THE), [])
        assert "Ctrl-D ends the dialogue.\n" in text
        assert len(held.messages) == 2


def readers():
    image = compile_model(MODEL, SMALL)
    device = GoldenAccelerator(SMALL)
    device.load(image)
    return {"accelerator": AcceleratorReader(device, image, image.vocabulary),
            "engine": EngineReader(MODEL, GoldenEngine(EngineConfig()))}


@pytest.mark.parametrize("kind", ["accelerator", "engine"])
def test_nothing_is_read_twice(kind):
    """A longer prompt goes on where the device is; the text is that of a new sequence."""
    sampler, first = Sampler(temperature=0), [5, 9, 80]
    generator = Generator(readers()[kind])
    answer = list(generator.generate(first, 3, sampler))
    assert (generator.prompt.tokens, generator.text.tokens) == (4, 2)
    longer = [*first, *answer, 7, 8]
    resumed = list(generator.generate(longer, 3, sampler, resume=True))
    assert generator.prompt.tokens == 4 + 3         # the last token of the answer, and two new ones
    fresh = Generator(readers()[kind])
    assert resumed == list(fresh.generate(longer, 3, sampler))
    assert fresh.prompt.tokens == 9

    # Another beginning, or the same prompt, is read from the start.
    for prompt in ([6, *longer], first):
        before = generator.prompt.tokens
        again = list(generator.generate(prompt, 2, sampler, resume=True))
        assert generator.prompt.tokens - before == len(prompt) + 1
        assert again == list(fresh.generate(prompt, 2, sampler))


def test_a_pass_that_fails_is_not_gone_on_with():
    generator = Generator(readers()["accelerator"])
    tokens = generator.generate([5, 9, 80], 5, Sampler(temperature=0))
    first = next(tokens)

    def fail(token):
        raise OSError
    read, generator._reader.read = generator._reader.read, fail
    with pytest.raises(OSError, match=r"^$"):
        next(tokens)
    generator._reader.read = read
    before = generator.prompt.tokens
    next(generator.generate([5, 9, 80, first, 4], 5, Sampler(temperature=0), resume=True))
    assert generator.prompt.tokens - before == 6


def test_template_is_in_an_image(tmp_path):
    """A compiled image holds dialogues as its model does."""
    image = compile_model(MODEL, SMALL)
    vocabulary = dataclasses.replace(words(), template=CHATML, user=(258,), stripped=(260,),
                                     opened=False)
    write_image(tmp_path / "m.tally", dataclasses.replace(image, vocab=262,
                                                          vocabulary=vocabulary))
    assert read_image(tmp_path / "m.tally").vocabulary == vocabulary
