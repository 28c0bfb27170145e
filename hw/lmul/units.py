"""The units of L-Mul in the table that ``python -m hw.synth`` makes."""

from functools import partial

from hw.formats.minifloat import FORMATS, bf16, e4m3, e5m2
from hw.lmul.dot import LMulDot
from hw.lmul.exact import ExactMultiplier
from hw.lmul.lmul import LMul
from hw.synth import Unit

__all__ = ["UNITS"]

_BARS = {"e4m3": "<= 36 LUT4-eq at >= 260 MHz", "bf16": "<= 72 LUT4-eq at >= 235 MHz"}

#: L-Mul beside the exact multiplier: each as specified, and ``finite``: it saturates, and infinity
#: and NaN operands are not recognized.
UNITS: dict[str, Unit] = {}
for _name, _fmt in FORMATS.items():
    for _unit, _component in (("lmul", LMul), ("exact multiplier", ExactMultiplier)):
        _key = f"{_unit.split()[0]}-{_name}"
        _bar = _BARS.get(_name, "") if _component is LMul else ""
        UNITS[_key] = Unit(unit=_unit, format=_name, build=partial(_component, _fmt),
                           clock_mhz=300, bar=_bar)
        UNITS[f"{_key}-finite"] = Unit(
            unit=f"{_unit}, finite", format=_name, clock_mhz=300, bar=_bar,
            build=partial(_component, _fmt, saturate=True, specials=False))
for _fmt in (e4m3, e5m2, bf16):
    UNITS[f"lmul-dot-{_fmt.name}"] = Unit(unit="lmul dot product", format=_fmt.name,
                                          build=partial(LMulDot, _fmt))
