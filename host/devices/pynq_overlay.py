"""The accelerator in an overlay of PYNQ: a class that PYNQ finds by the core's VLNV.

Nobody has run this on a board: pynq 4 installs on boards only, and a test puts a stand-in in its
place. The driver itself is :class:`host.devices.axi_accelerator.MappedAccelerator`. On a board::

    from host.devices.pynq_overlay import pynq_driver
    pynq_driver()                               # before the overlay is loaded
    overlay = pynq.Overlay("design.bit")
    accelerator = overlay.tally_axi_accelerator_0.accelerator()
    accelerator.load(read_image("model.tally"))
    result = accelerator.token(1, new=True)

Read the fabric clock back (``pynq.Clocks.fclk0_mhz``): at a slower clock than that of the design
all results are right, and slow.
"""

from typing import Any

from host.devices.axi_accelerator import MappedAccelerator
from hw.link.registers import VLNV

__all__ = ["PynqBus", "PynqMemory", "pynq_driver"]


class PynqMemory:
    """A buffer of ``pynq.allocate``, an array of bytes.

    Parameters
    ----------
    buffer : PynqBuffer
        Of uint8, in one piece; PYNQ aligns it to pages of 4 KiB.
    """

    def __init__(self, buffer: Any):
        self._buffer = buffer

    @property
    def address(self) -> int:
        """Address on ``m_axi``."""
        return int(self._buffer.device_address)

    def write(self, offset: int, data: bytes | memoryview) -> None:
        """Write bytes, and make caches write them back."""
        self._buffer[offset:offset + len(data)] = memoryview(data)
        self._buffer.flush()

    def read(self, offset: int, size: int) -> bytes:
        """Read bytes, behind the caches."""
        self._buffer.invalidate()
        return bytes(self._buffer[offset:offset + size])

    def free(self) -> None:
        """Give the buffer back."""
        self._buffer.freebuffer()


class PynqBus:
    """Registers of a core in an overlay; an error of the bus ends the process with a signal.

    Parameters
    ----------
    core : pynq.DefaultIP
    allocate : callable
        ``pynq.allocate``.
    """

    def __init__(self, core: Any, allocate: Any):
        self._core, self._allocate = core, allocate

    def read(self, address: int, size: int) -> int:
        """Read a word."""
        return int(self._core.mmio.read(address, size))

    def write(self, address: int, value: int) -> None:
        """Write a word."""
        self._core.mmio.write(address, value)

    def allocate(self, size: int) -> PynqMemory:
        """Allocate memory that the fabric reaches."""
        return PynqMemory(self._allocate(shape=(size,), dtype="u1"))


def pynq_driver() -> type:
    """Define the class that PYNQ makes for each of the cores in an overlay, and return it.

    Raises
    ------
    ModuleNotFoundError
        If pynq is not installed.
    """
    import pynq

    class TallyAccelerator(pynq.DefaultIP):     # type: ignore[misc]
        """The core's registers; PYNQ keeps this class by the names in ``bindto``."""

        bindto = (VLNV,)

        def __init__(self, description: dict):
            super().__init__(description=description)
            self._name = str(description.get("fullpath", "PYNQ"))

        def accelerator(self, **settings: Any) -> MappedAccelerator:
            """Open the accelerator, with the settings of :class:`MappedAccelerator`."""
            return MappedAccelerator(PynqBus(self, pynq.allocate),
                                     **{"name": self._name} | settings)

    return TallyAccelerator
