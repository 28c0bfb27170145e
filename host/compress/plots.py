"""Pictures of profiles and of sizes; they need matplotlib, an optional extra."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from host.compress.profile import EMBEDDING, Profile
from host.errors import need_package
from host.models.mpo_llama import MATRICES

__all__ = ["plot_pareto", "plot_profile"]


def _pyplot() -> Any:
    need_package("matplotlib", "--plot", "plot")
    import matplotlib as mpl
    mpl.use("svg")
    # The same picture has the same bytes.
    mpl.rcParams["svg.hashsalt"] = "tally"
    from matplotlib import pyplot
    return pyplot


def plot_profile(found: Profile, path: Path) -> None:
    """Draw the divergence of each matrix of each layer, with a low rank and with two planes."""
    pyplot = _pyplot()
    kinds = {"low rank, half of the elements": ("low-rank", 0),
             "low rank, a quarter": ("low-rank", 1), "two trit planes": ("quantized", 0)}
    count = len(found.layers.matrices)
    figure, axes = pyplot.subplots(1, len(kinds), figsize=(10, 1.5 + 0.16 * count), sharey=True,
                                   layout="constrained")
    for axis, (title, (method, which)) in zip(axes, kinds.items(), strict=True):
        grid = np.zeros((count, len(MATRICES)))
        for column, name in enumerate(MATRICES):
            for layer in range(count):
                rows = [row.jsd for row in found.rows if row.matrix != EMBEDDING
                        and (row.layer, row.matrix, row.method) == (layer, name, method)]
                grid[layer, column] = rows[which]
        drawn = axis.imshow(np.log10(np.maximum(grid, 1e-6)), aspect="auto", cmap="viridis",
                            vmin=-4, vmax=0)
        axis.set_title(title, fontsize=9)
        axis.set_xticks(range(len(MATRICES)), MATRICES, rotation=90, fontsize=7)
    axes[0].set_ylabel("layer")
    figure.colorbar(drawn, ax=axes, label="log10 of the divergence, bits a token")
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)


def plot_pareto(record: Path, path: Path) -> None:
    """Draw bits per byte over size, a line for each method, healed and not."""
    pyplot = _pyplot()
    from matplotlib import ticker
    rows = [row for row in json.loads(record.read_text(encoding="utf-8"))["rows"]
            if row["digits"] != 2]
    models = sorted({row["model"] for row in rows})
    figure, axes = pyplot.subplots(1, len(models), figsize=(6 * len(models), 4.5), squeeze=False,
                                   layout="constrained")
    colours = {"quantized": "C0", "low-rank": "C1", "mpo": "C2", "joint": "C3"}
    for axis, model in zip(axes[0], models, strict=True):
        for method, colour in colours.items():
            for healed, style in ((False, "--"), (True, "-")):
                points: dict[float, float] = {}
                for row in rows:
                    if (row["model"], row["method"], row["healed"]) == (model, method, healed):
                        size, bits = row["bytes"] / 1e6, row["bits_per_byte"]
                        points[size] = min(bits, points.get(size, bits))    # of the rates
                if points:
                    axis.plot(*zip(*sorted(points.items()), strict=True), style, color=colour,
                              marker=".",
                              label=f"{method}{', healed' * healed}")
        floats = next(row for row in rows if row["model"] == model and row["method"] == "float32")
        axis.axhline(floats["bits_per_byte"], color="grey", linewidth=0.8, label="float32")
        axis.axvline(0.07 * floats["bytes"] / 1e6, color="grey", linewidth=0.8, linestyle=":",
                     label="93 % less")
        axis.set_title(f"{model}: {floats['bytes'] / 1e6:.3g} MB in float32", fontsize=10)
        axis.set_xlabel("size, MB")
        axis.set_ylabel("bits per byte")
        axis.set_xscale("log")
        axis.set_yscale("log")
        axis.xaxis.set_major_locator(ticker.FixedLocator(
            sorted({row["budget"] / 1e6 for row in rows
                    if row["model"] == model and row["method"] != "float32"})))
        axis.xaxis.set_major_formatter("{x:g}")
        axis.xaxis.set_minor_locator(ticker.NullLocator())
        axis.yaxis.set_major_locator(ticker.FixedLocator([1.3, 1.5, 2, 2.5, 3, 4, 5, 6, 8]))
        axis.yaxis.set_major_formatter("{x:g}")
        axis.yaxis.set_minor_locator(ticker.NullLocator())
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside right center", fontsize=8)
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)
