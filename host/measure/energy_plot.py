"""The picture of a token's energy; it needs matplotlib, an optional extra."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from host.errors import need_package

__all__ = ["plot_token_energy"]


def plot_token_energy(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Draw the parts of each arithmetic's token, a panel for each library and one of memories.

    Parameters
    ----------
    rows : sequence of mapping
        Of docs/results/token_energy.json, of one model.
    path : path
    """
    need_package("matplotlib", "--picture", "plot")
    import matplotlib as mpl
    mpl.use("svg")
    mpl.rcParams["svg.hashsalt"] = "tally"      # the same picture has the same bytes
    from matplotlib import pyplot
    libraries = list(dict.fromkeys(row["library"] for row in rows))
    names = list(dict.fromkeys(row["arithmetic"] for row in rows))
    panels = [(f"logic and registers, measured: {library}", [
        row for row in rows if row["library"] == library and row["kind"].startswith("measured")])
        for library in libraries]
    panels.append(("memories, published: 45 nm", [
        row for row in rows if row["library"] == libraries[0]
        and row["kind"].startswith("published")]))
    figure, axes = pyplot.subplots(1, len(panels), figsize=(4.2 * len(panels), 4.2),
                                   layout="constrained")
    for axis, (title, shown) in zip(axes, panels, strict=True):
        below = dict.fromkeys(names, 0.0)
        for part in dict.fromkeys(row["part"] for row in shown):
            heights = {row["arithmetic"]: row["picojoules"] / 1e6 for row in shown
                       if row["part"] == part}
            axis.bar(names, [heights.get(name, 0.0) for name in names],
                     bottom=[below[name] for name in names], label=part)
            for name, height in heights.items():
                below[name] += height
        axis.set_ylim(0, 1.05 * max(below.values()))
        axis.set_title(title, fontsize=9)
        axis.set_ylabel("microjoules a token")
        axis.tick_params(axis="x", rotation=60, labelsize=8)
        axis.legend(fontsize=7)
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)
