"""Devices beside the golden model: products and tokens are compared, bit by bit."""

import time

import numpy as np
from numpy.typing import NDArray

from host.devices.accelerator import AcceleratorDevice, TokenResult, machine_of
from host.devices.engine import Products
from host.devices.errors import MismatchError
from host.files.image import Image
from sim.golden.machine import HazardError, MachineFault, TopKResult

__all__ = ["CheckedProducts", "CheckedTokens"]


class CheckedProducts:
    """Products of a device, each compared with the golden model's.

    Parameters
    ----------
    products, golden : Products
        What is checked, and what it must equal.
    label : str
        Names the device in the error message.

    Attributes
    ----------
    checked : int
        Results compared, all of them equal.
    """

    def __init__(self, products: Products, golden: Products, label: str):
        self._products = products
        self._golden = golden
        self._label = label
        self.checked = 0

    def __call__(self, name: str, activations: NDArray[np.int8]) -> NDArray[np.int32]:
        """Product of the device.

        Raises
        ------
        MismatchError
            At the first result that differs from the golden model.
        """
        actual = self._products(name, activations)
        expected = self._golden(name, activations)
        if not np.array_equal(actual, expected):
            batch, row = np.argwhere(actual != expected)[0].tolist()
            raise MismatchError(
                f"Matrix {name} row {row} (activation vector {batch} of {len(activations)}) must "
                f"give {expected[batch, row]}, but the {self._label} gave "
                f"{actual[batch, row]}")
        self.checked += actual.size
        return actual



class CheckedTokens:
    """Tokens of a device, each compared with the golden machine's, logit by logit.

    Parameters
    ----------
    device : AcceleratorDevice
        With ``image`` loaded.
    image : Image

    Attributes
    ----------
    device : AcceleratorDevice
    machine : Machine
    checked : int
        Logits compared, all of them equal.
    seconds : float
        Wall time of the golden machine.
    """

    def __init__(self, device: AcceleratorDevice, image: Image):
        self.device = device
        self.machine = machine_of(image)
        self.checked = 0
        self.seconds = 0.0
        self._program = image.program
        self._passes = 0

    def token(self, token: int, *, new: bool = False, slot: int | None = None) -> TokenResult:
        """Make a pass on both, as :meth:`AcceleratorDevice.token` does.

        Raises
        ------
        MismatchError
            At the first integer, row or scale that differs.
        DeviceError
            As :meth:`AcceleratorDevice.token` does.
        """
        result = self.device.token(token, new=new, slot=slot)
        self.compare(token, result, new=new, slot=slot)
        return result

    def compare(self, token: int, result: TokenResult, *, new: bool,
                slot: int | None = None) -> None:
        """Make a pass on the golden machine; it must deliver ``result``.

        Raises
        ------
        MismatchError
            At the first integer, row or scale that differs.
        """
        place = f"pass {self._passes} (token {token})"
        self._passes += 1
        began = time.perf_counter()
        try:
            expected = self.machine.run(token, self._program.start(new=new, slot=slot))
        except (MachineFault, HazardError) as error:
            raise MismatchError(f"In {place} the golden machine stopped, but the "
                                f"{self.device.label} did not: {error}") from error
        self.seconds += time.perf_counter() - began
        if len(result.top_k) != len(expected):
            raise MismatchError(f"In {place} the {self.device.label} must deliver the largest "
                                f"logits {len(expected)} times, not {len(result.top_k)}")
        for number, (actual, wanted) in enumerate(zip(result.top_k, expected, strict=True)):
            self._compare(f"TOP_K {number} of {place}", actual, wanted)
            self.checked += len(wanted.rows)

    def _compare(self, place: str, actual: TopKResult, wanted: TopKResult) -> None:
        label = self.device.label
        if len(actual.rows) != len(wanted.rows):
            raise MismatchError(f"{place} must deliver {len(wanted.rows)} logits, but the {label} "
                                f"gave {len(actual.rows)}")
        differ = np.flatnonzero((actual.rows != wanted.rows) | (actual.values != wanted.values))
        if differ.size:
            k = int(differ[0])
            raise MismatchError(
                f"{place} must deliver row {wanted.rows[k]} with {wanted.values[k]} in place {k}, "
                f"but the {label} gave row {actual.rows[k]} with {actual.values[k]}")
        if (actual.number, actual.exponent) != (wanted.number, wanted.exponent):
            raise MismatchError(
                f"{place} must deliver the scale {wanted.number:#06x} times "
                f"2**{wanted.exponent}, but the {label} gave {actual.number:#06x} times "
                f"2**{actual.exponent}")
