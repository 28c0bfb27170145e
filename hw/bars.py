"""Bars: what a figure must be at least or at most, as a number and as a sentence."""

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Literal

__all__ = ["Bar", "sentence", "shares"]

#: Fields in words, behind the number; an empty word stands for a plain field.
_WORDS = {"lut4_eq": "LUT4-eq", "lut4": "LUT4", "fmax_mhz": "MHz", "dsp": "DSP",
          "block_ram": "block RAM", "ff": "FF"}


@dataclasses.dataclass(frozen=True)
class Bar:
    """One bar.

    Attributes
    ----------
    field : str
        Field of a row.
    relation : str
        ``<=`` or ``>=``.
    value : float
        What the field is compared with, in the field's unit; with ``of`` a share of that field.
    of : str
        Another field of the row, or empty.
    """

    field: str
    relation: Literal["<=", ">="]
    value: float
    of: str = ""

    def met(self, row: Mapping[str, object]) -> bool:
        """Whether a row reaches the bar; a row without the field does not.

        Parameters
        ----------
        row : mapping
            A row of a record.
        """
        found, limit = row.get(self.field), self.value
        if self.of:
            whole = row.get(self.of)
            if not isinstance(whole, int | float):
                return False
            limit *= whole
        if not isinstance(found, int | float):
            return False
        return found <= limit if self.relation == "<=" else found >= limit

    def __str__(self) -> str:
        if self.of:
            share = self.of.replace("_", " ")
            return (f"{self.field.replace('_', ' ')} {self.relation} "
                    f"{share if self.value == 1 else f'{100 * self.value:g} % of {share}'}")
        name, per, what = self.field.partition("_per_")
        if name not in _WORDS:
            return f"{self.field.replace('_', ' ')} {self.relation} {self.value:g}"
        words = f"{_WORDS[name]} per {what}" if per else _WORDS[name]
        if self.relation == "<=" and self.value == 0:
            return f"no {words}" if " " in words else f"0 {words}"
        return f"{self.relation} {self.value:g} {words}"


def sentence(bars: Iterable[Bar]) -> str:
    """Write bars as the tables of the docs do: ``<= 44 LUT4-eq per lane at >= 150 MHz, 0 DSP``.

    Parameters
    ----------
    bars : iterable of Bar
        A bar on a clock goes with the one before it.
    """
    text = ""
    for bar in bars:
        text += (" at " if bar.field == "fmax_mhz" else ", ") if text else ""
        text += str(bar)
    return text


def shares(row: Mapping[str, object], **counts: int) -> dict[str, float]:
    """Return areas by lane, by trit or by whatever is counted.

    Parameters
    ----------
    row : mapping
        With the areas ``lut4_eq`` and ``lut4``.
    **counts : int
        How many there are of what; 0 gives no share.

    Returns
    -------
    dict
        ``lut4_eq_per_lane``, for example, rounded to two digits.
    """
    return {f"{name}_per_{what}": round(area / count, 2)
            for what, count in counts.items() if count
            for name in ("lut4_eq", "lut4") if isinstance(area := row.get(name), int)}
