"""Files that are wrong: each reader says why; and the fuzzer notices what it is there to notice."""

import os
import time
import warnings

import numpy as np
import pytest

from host.cli import main as cli
from host.fuzz.fuzz import READERS, fuzz, mutate, read


@pytest.mark.parametrize("reader", READERS)
def test_readers(reader):
    outcome = fuzz(reader, 150)
    assert outcome.crashes == []
    assert outcome.files == 150 == outcome.errors + outcome.models
    # Changes are neither always fatal nor mostly without effect.
    assert outcome.errors > 75
    assert outcome.models > 3


@pytest.mark.parametrize("reader", READERS)
def test_originals_are_models(reader, tmp_path):
    for files in READERS[reader]():
        assert read(tmp_path, files) is None
        assert list(tmp_path.iterdir()) == []


def test_files_are_the_same_every_time():
    files = READERS["checkpoint"]()[0]
    one, two = (mutate(files, np.random.default_rng([1, 7])) for _ in range(2))
    assert one == two != files


# What a reader may not do.

def raise_error(directory, files):
    raise KeyError("name")


def warn(directory, files):
    warnings.warn("overflow", RuntimeWarning, stacklevel=1)


def hang(directory, files):
    time.sleep(60)


def end(directory, files):
    os._exit(3)


def fill(directory, files):
    np.ones(1 << 26)        # 512 MiB


def write_lines(directory, files):
    return "one\ntwo"


@pytest.mark.parametrize(("reading", "what"), [
    (raise_error, "KeyError: 'name'"), (warn, "RuntimeWarning: overflow"),
    (hang, "TimeoutError: no answer"), (end, "the process ended or hung"),
    (fill, "Unable to allocate 512. MiB"),
    (write_lines, r"message that is not one printable line: 'one\ntwo'")])
def test_crashes_are_noticed(reading, what):
    outcome = fuzz("llama2c", 2, reading=reading, seconds=1)
    assert outcome.files == len(outcome.crashes) == 2
    assert all(what in crash for crash in outcome.crashes)
    assert outcome.crashes[1].startswith("file 1: ")


def test_command(capsys, tmp_path):
    assert cli.main(["fuzz", "llama2c", "--files", "20", "--json", str(tmp_path / "f.json")]) == 0
    assert "llama2c: 20 files, " in capsys.readouterr().out
    assert '"crashes": 0' in (tmp_path / "f.json").read_text()
