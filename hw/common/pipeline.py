"""Values that advance together through the steps of a calculation."""

from collections.abc import Mapping
from types import MappingProxyType, SimpleNamespace

from amaranth import *

__all__ = ["Pipeline"]


class Pipeline:
    """Steps of a calculation, with a register after each but the first few.

    A step takes values by name and returns them as they are after it, ``valid`` among them in every
    step. Values that no later step takes cost nothing.

    Parameters
    ----------
    m : Module
    enable : Value
        Lets every register advance.
    valid : Value
        Marks values that enter; it alone is reset.
    wires : int
        Number of first steps without a register.
    """

    def __init__(self, m: Module, *, enable: Value, valid: Value, wires: int = 0):
        self._m = m
        self._enable = enable
        self._valid = valid
        self._wires = wires
        self._step = 0

    def step(self, init: Mapping[str, int] = MappingProxyType({}), /,
             **values: Value) -> SimpleNamespace:
        """End a step.

        Parameters
        ----------
        init : mapping
            Values of registers at power-on. A register that a condition forces to a constant other
            than zero should start with it: a flip-flop of ECP5 has one value for both.
        values : Value
            What the step calculated.

        Returns
        -------
        namespace of Signal
            The same names after the step, and ``valid``.
        """
        self._step += 1
        signals = {name: Signal(Value.cast(value).shape(), name=f"{name}_{self._step}",
                                init=init.get(name, 0), reset_less=True)
                   for name, value in values.items()}
        valid = Signal(name=f"valid_{self._step}")
        pairs = [valid.eq(self._valid), *(signals[name].eq(values[name]) for name in values)]
        if self._step > self._wires:
            with self._m.If(self._enable):
                self._m.d.sync += pairs
        else:
            self._m.d.comb += pairs
        self._valid = valid
        return SimpleNamespace(valid=valid, **signals)
