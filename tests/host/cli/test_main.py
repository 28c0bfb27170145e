"""The command line as a whole: help, mistakes, encodings, control characters, widths."""

import argparse
import os
import re
import subprocess
import sys

import pytest
from rich.console import Console

from host.cli import doctor
from host.cli import main as cli
from host.cli.terminal import (
    fact_table,
    listing_of,
    printable,
    progress_bars,
    table,
    write,
)
from host.models.examples import tiny_model
from host.models.mmfreelm import write_model


def run(capsys, *arguments):
    """Exit status and what was printed."""
    try:
        status = cli.main([str(argument) for argument in arguments])
    except SystemExit as exit_:
        status = exit_.code
    captured = capsys.readouterr()
    return status, captured.out, captured.err


@pytest.fixture(scope="module")
def model_path(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "tiny.gguf"
    write_model(path, tiny_model())
    return str(path)


def parsers(parser):
    """Yield all parsers of commands."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for sub in action.choices.values():
                yield sub
                yield from parsers(sub)


@pytest.fixture
def commands():
    parser = cli._Parser(prog="tally")
    cli._add_commands(parser, cli.COMMANDS)
    return list(parsers(parser))


class TestHelp:
    def test_commands(self, capsys):
        status, out, err = run(capsys, "--help")
        assert (status, err) == (0, "")
        names = re.findall(r"^    (\w+)", out, re.MULTILINE)
        assert names == [command.NAME for command in cli.COMMANDS]
        status, out, err = run(capsys, "experiment", "--help")
        assert (status, err) == (0, "")
        assert re.findall(r"^    (\w+)", out, re.MULTILINE) == [
            "density", "wina", "cycles", "integer", "rotation", "l1", "tensor", "device", "board",
            "memory", "netlist", "tokenizers", "operands", "energy", "picture"]

    def test_each_option_says_what_it_is(self, commands):
        """No help text begins in the middle of a sentence: (default: 3), of each document, ..."""
        count = 0
        for parser in commands:
            for action in parser._actions:
                if isinstance(action, argparse._SubParsersAction):
                    continue
                assert action.help, (parser.prog, action.dest)
                assert not re.match(r"\(|(of|for the|the same) ", action.help), action.help
                count += 1
        assert count > 100

    def test_each_command_has_a_parser_and_a_description(self, commands):
        assert len(commands) == len(cli.COMMANDS) + 15
        for parser in commands:
            assert parser.description.endswith(".") or parser.description == next(
                command.HELP for command in cli.COMMANDS
                if f"tally {command.NAME}" == parser.prog)


@pytest.mark.parametrize(("arguments", "message"), [
    ([], "tally: the following arguments are required: COMMAND"),
    (["fuzz", "nosuch"], "tally fuzz: argument READER: 'nosuch' is not a reader (try 'gguf', "
                         "'checkpoint', 'llama2c', 'pieces', 'own', 'image', 'masks', 'corpus')"),
    (["evaluate", "--corpsu", "x", "--corpus", "y"],
     "tally evaluate: '--corpsu' is not an option (try --corpus)"),
    (["experiment"], "tally experiment: the following arguments are required: COMMAND"),
    (["experiment", "l1", "x", "--bogus"],
     "tally experiment l1: '--bogus' is not an option (try --help)"),
    (["doctor", "x"], "tally doctor: unexpected argument 'x': a text of several words needs "
                      "quotes, and arguments come before options")])
def test_mistakes(capsys, arguments, message):
    assert run(capsys, *arguments) == (2, "", f"{message}\n")


@pytest.mark.parametrize("command", ["run", "compile"])
def test_context_of_a_model_that_has_none(capsys, model_path, command):
    assert run(capsys, command, model_path, "--context", 16) == (
        1, "", f"tally {command}: Option --context is for transformers, but {model_path} has no "
               f"attention: its sequences may have any length\n")


def test_evaluate_plain_text(capsys, monkeypatch, model_path, tmp_path):
    """Ten documents of one's own; the table fits 80 columns."""
    monkeypatch.setenv("COLUMNS", "80")
    for n in range(10):
        (tmp_path / f"{n}.txt").write_text(f"Once upon a time there were {n}.")
    for text, count in (("held-out", 3), ("all", 10)):
        status, out, err = run(capsys, "evaluate", model_path, "--corpus", tmp_path, "--text", text,
                               "--workers", 1, "--arithmetic", "float")
        assert (status, err) == (0, "")
        assert f"tiny on {text} text: {count} documents, " in out
        assert max(map(len, out.splitlines())) <= 80
        assert "…" not in out
    (tmp_path / "one").write_text("Once upon a time.")
    assert run(capsys, "calibrate", model_path, "--corpus", tmp_path / "one", "--output",
               tmp_path / "masks.json") == (
        1, "", f"tally calibrate: {tmp_path}/one: has no document for calibration (docs/texts.md "
               f"says which document is for what)\n")


def test_missing_package(capsys, monkeypatch):
    """A package of another command is named, without a traceback."""
    def absent(console, options):
        raise ModuleNotFoundError("No module named 'amaranth.hdl'", name="amaranth.hdl")

    monkeypatch.setattr(doctor, "run", absent)
    assert run(capsys, "doctor") == (
        1, "", "tally doctor: Python package amaranth is not installed; 'tally doctor' says how to "
               "get what is missing\n")


class TestTerminal:
    def test_printable(self):
        assert printable("a\x1b[31m\x07\r\x9b\x7f\u202eé\U0001f600\n\t") == (
            r"a\x1b[31m\x07\r\x9b\x7f\u202eé" + "\U0001f600" + r"\n\t")
        assert printable("a\n\tb\x1b", "\n\t") == "a\n\tb\\x1b"

    def test_text_on_a_terminal(self, capsys):
        """Escapes of a text are shown, not obeyed; a file gets the text as it is."""
        write(Console(force_terminal=True, color_system=None), "[bold]a\x1b[31m\nb")
        assert capsys.readouterr().out == "[bold]a\\x1b[31m\nb"
        write(Console(force_terminal=False), "[bold]a\x1b[31m\nb")
        assert capsys.readouterr().out == "[bold]a\x1b[31m\nb"

    def test_titles_and_cells(self, capsys):
        """They are text, not markup, and control nothing."""
        console = Console(width=80)
        console.print(table("[red]t\x1b", ["[x]", "n"], [("[bold]a\x1b", "1")], caption="[c]\x1b"))
        console.print(fact_table("[red]u\x1b", [("[bold]b\x1b", "2", "[dim]\x1b")]))
        out = capsys.readouterr().out
        for text in (r"[red]t\x1b", r"[bold]a\x1b", r"[c]\x1b", r"[red]u\x1b", r"[bold]b\x1b",
                     r"[dim]\x1b"):
            assert text in out
        assert "\x1b" not in out

    def test_numbers_are_never_cut(self, capsys):
        Console(width=30).print(table("t", ["name", "n", "m"], [
            ("a long name of a row", "123,456,789", "987,654,321")]))
        out = capsys.readouterr().out
        assert "123,456,789" in out
        assert "987,654,321" in out

    def test_progress(self, capsys):
        """What is done and what is left, with control characters shown."""
        with progress_bars(Console(force_terminal=True, width=120)) as bar:
            bar("Reading [x]")(0.5, "a\x1b]b")
        out = capsys.readouterr().out
        assert "Reading [x]" in out
        assert r"a\x1b]b" in out
        assert "left:" in out

    def test_list(self):
        assert [listing_of(range(n)) for n in (1, 2, 3)] == ["0", "0 and 1", "0, 1 and 2"]


def process(model_path, *arguments, **environment):
    return subprocess.run(
        [sys.executable, "-m", "host", *arguments], capture_output=True, check=False,
        env=os.environ | environment, timeout=300)


def test_encoding_without_the_character(model_path):
    """It is written as an escape, in text and in errors."""
    done = process(model_path, "run", model_path, "a \U0001f600", "--device", "engine-golden",
                   "--tokens", "1", PYTHONIOENCODING="cp1252")
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.startswith(rb"a \U0001f600")
    done = process(model_path, "run", "\U0001f600.gguf", PYTHONIOENCODING="cp1252")
    assert (done.returncode, done.stdout) == (1, b"")
    assert done.stderr.replace(b"\r\n", b"\n") == (
        rb"tally run: \U0001f600.gguf: No such file or directory; if it is a prompt, give it with "
        rb"--prompt" + b"\n")


def test_prompt_that_is_no_utf8(model_path):
    done = process(model_path, "run", model_path, b"a\xff")
    assert (done.returncode, done.stdout, done.stderr) == (
        1, b"", b"tally run: Prompt must be UTF-8, but character 2 is the byte 0xff\n")


def test_errors_control_no_terminal(capsys):
    assert run(capsys, "run", "\x1b[31m.gguf") == (
        1, "", "tally run: \\x1b[31m.gguf: No such file or directory; if it is a prompt, give it "
               "with --prompt\n")


def test_calibrate_fits_80_columns(capsys, monkeypatch, model_path, tmp_path):
    monkeypatch.setenv("COLUMNS", "80")
    corpus = tmp_path / "tales"
    corpus.write_text("<|endoftext|>".join(f"story {n} " + "the end " * 9 for n in range(4)))
    status, out, err = run(capsys, "calibrate", model_path, "--corpus", corpus, "--documents", 1,
                           "--tokens", 8, "--sparsity", 0.2, "--allocation", "uniform",
                           "--output", tmp_path / "g", "--workers", 1)
    assert (status, err) == (0, "")
    table_ = out.partition("Wrote")[0]
    assert max(map(len, table_.splitlines())) <= 80
    assert "…" not in table_
