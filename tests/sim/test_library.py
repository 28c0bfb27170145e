"""Building simulators: an interrupt ends what was started, and leaves nothing in the cache."""

import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

from sim.fast import library

#: A step that starts a process of its own, as make does, and says which.
STEP = ("import pathlib, subprocess, time; child = subprocess.Popen(['sleep', '600']); "
        "pathlib.Path('child').write_text(str(child.pid)); time.sleep(600)")


def ended(process):
    """Whether a process has ended; what nobody has waited for yet is a zombie."""
    try:
        state = pathlib.Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
        return state == "Z"
    except FileNotFoundError:
        return True


def wait_for(condition):
    until = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.02)


def test_interrupt_ends_all_processes(tmp_path):
    child = tmp_path / "child"

    def interrupt():
        if child.exists() and child.read_text():
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        library._run([sys.executable, "-c", STEP], tmp_path, "make", interrupt)
    wait_for(lambda: ended(int(child.read_text())))


PROGRAM = f"""
import sys
from host.cli import main, run
from sim.fast import library

def text(console, options):
    import pathlib, tempfile
    with tempfile.TemporaryDirectory(dir=sys.argv[1], prefix="build-") as folder:
        library._run([sys.executable, "-c", {STEP!r}], pathlib.Path(folder), "make")

run.run = text
sys.exit(main.main(["run"]))
"""


def test_sigterm_of_a_command(tmp_path):
    """One line, no traceback; neither child processes nor a half-built folder are left."""
    command = subprocess.Popen([sys.executable, "-c", PROGRAM, str(tmp_path)],
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        wait_for(lambda: any(path.read_text() for path in tmp_path.glob("build-*/child")))
        child = int(next(tmp_path.glob("build-*/child")).read_text())
        command.send_signal(signal.SIGTERM)
        out, err = command.communicate(timeout=60)
    finally:
        command.kill()
    assert (command.returncode, out, err) == (128 + signal.SIGTERM, "",
                                              "tally run: stopped by SIGTERM\n")
    assert os.listdir(tmp_path) == []
    wait_for(lambda: ended(child))
