"""A small accelerator for the host's tests, which the simulator is built for once."""

from hw.config import AcceleratorConfig, EngineConfig
from sim.tools import missing_tools

SMALL = AcceleratorConfig(
    engine=EngineConfig(lanes=16, result_lanes=4, accumulator_depth=64, max_planes=3, max_batch=1,
                        index_width=9, port_bytes=4),
    vector_depth=4096, program_depth=256, list_depth=512, queue_words=128, top_k=5,
    address_width=19)

MISSING = missing_tools("verilator", "g++", "make", "perl")
