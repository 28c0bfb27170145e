"""Which benches run on synthesized netlists: a file of its own, which no record's hash covers."""

__all__ = ["CASES"]

#: Cases of each bench that run as netlists, by family. A case that is left out has the logic of
#: another one in more lanes or formats. An accelerator is larger than any iCE40.
CASES: dict[str, dict[str, tuple[str, ...]]] = {
    "engine": {"ecp5": ("ecp5", "ecp5_rows", "narrow", "narrow_rows"),
               "ice40": ("narrow", "narrow_rows")},
    "gearbox": {"ecp5": ("all",)},      # the ports of two gearboxes are cells of ECP5
    "lmul": {"ecp5": ("variants",), "ice40": ("variants",)},
    "lmul_dot": {"ecp5": ("units",), "ice40": ("units",)},
    "vector": {"ecp5": ("two", "three"), "ice40": ("two",)},
    "sparsity": {"ecp5": ("two",), "ice40": ("two",)},
    "memory": {"ecp5": ("all",), "ice40": ("all",)},
    "router": {"ecp5": ("both_walks", "one_walk"), "ice40": ("one_walk",)},
    "kv_write": {"ecp5": ("four",), "ice40": ("four",)},
    "prefetch": {"ecp5": ("plain", "attention"), "ice40": ("plain",)},
    "link": {"ecp5": ("parts",), "ice40": ("parts",)},
    "dispatch": {"ecp5": ("one", "attention"), "ice40": ("one", "attention")},
    "attention": {"ecp5": ("narrow",), "ice40": ("narrow",)},
    "board": {"ecp5": ("small",), "ice40": ("small",)},
    "accelerator_board": {"ecp5": ("small",)},
    "accelerator": {"ecp5": ("small", "attention")},
    "uart": {"ecp5": ("divisors",), "ice40": ("divisors",)},
    "axi4": {"ecp5": ("ends",)},
    "accelerator_axi4": {"ecp5": ("small",)},
    "axi_accelerator": {"ecp5": ("small",)},
    "sdram": {"ecp5": ("all",)},
    "crossing": {"ecp5": ("all",)},
    "phase": {"ecp5": ("all",)},
}
