"""A board on a serial port: the engine and the L-Mul unit behind the link."""

import numpy as np
from numpy.typing import NDArray

from host.devices.engine import EngineDevice
from host.devices.errors import DeviceError
from host.devices.serial_board import SerialBoard, SerialDevice, packed
from hw.config import EngineConfig
from hw.link.protocol import COUNT_BYTES, Command, EngineTransfers, transfer_bytes

__all__ = ["SerialEngine"]

#: Bits of a bf16 number.
_OPERAND_WIDTH = 16


class SerialEngine(SerialDevice[EngineConfig], EngineDevice):
    """A board on a serial port, or anything that speaks like one.

    The matrices stay with the host, which sends the listed columns with every product.

    Parameters
    ----------
    port : str
        Serial port, such as ``/dev/ttyUSB0``.
    board : str, optional
        Name of the board whose bitstream is expected.
    config : EngineConfig, optional
        The engine that is expected. Without it, the device's own description is believed.
    baud : int, optional
        Bits per second. Without it, that of the board, or those of all boards with an engine.
    timeout : float
        Seconds until a request fails.

    Attributes
    ----------
    link : Link

    Raises
    ------
    DeviceError
        If the port cannot be opened, nothing answers, or the device is another than expected.
    ValueError
        If ``board`` is unknown.
    """

    def __init__(self, port: str, *, board: str | None = None, config: EngineConfig | None = None,
                 baud: int | None = None, timeout: float = 2.0):
        self._board = SerialBoard(port, "engine", config=config, board=board, baud=baud,
                                  timeout=timeout)
        self.link = self._board.link
        super().__init__(EngineConfig(**self._board.facts["engine"]))
        self._transfers = EngineTransfers(self.config, _OPERAND_WIDTH)
        self._exchanges = self._transfers.exchanges
        self._entry_queue: int = self._board.facts["entry_queue"]
        self._stored: list[NDArray[np.uint8]] = []

    def lmul(self, x: NDArray[np.uint16], y: NDArray[np.uint16]) -> NDArray[np.uint16]:
        """L-Mul products of bf16 numbers, given and returned as bits."""
        x, y = np.broadcast_arrays(x, y)
        pairs = packed(self._transfers.pair, x=x.ravel(), y=y.ravel())
        products = b"".join(self._send(Command.LMUL, pairs))
        return np.frombuffer(products, "<u2").astype(np.uint16).reshape(x.shape)

    def close(self) -> None:
        """Close the port; the images are forgotten."""
        super().close()
        self._stored.clear()
        self._board.close()

    def _load(self, handle: int, name: str, rows: int, image: NDArray[np.uint8]) -> None:
        self._stored.append(image)

    def _product(self, handle: int, columns: NDArray[np.uint32],
                 values: NDArray[np.int8]) -> tuple[NDArray[np.int32], int, int]:
        _, rows, _, plane_count = self._images[handle]
        batch = values.shape[1]
        job = self.config.job(rows, planes=plane_count, batch=batch)
        weights = self._stored[handle][columns]
        self._board.settle()
        with self._board.unsettled():
            self._send(Command.JOB, packed(self._transfers.job, **job))
            self._stream_columns(columns, values, weights.reshape(len(columns), -1))
            results = self._results(rows, job["groups"], job["tail"], batch)
        transfers = -(-weights.nbytes // self.config.port_bytes)
        return results, self.status()["cycles"], transfers

    def _stream_columns(self, columns: NDArray[np.uint32], values: NDArray[np.int8],
                        weights: NDArray[np.uint8]) -> None:
        """Send list and weights in turns: never more entries than the device's queue holds."""
        batch = values.shape[1]
        entries = packed(self._transfers.entry, index=np.repeat(columns, batch),
                         value=values.ravel(), end=np.zeros(values.size, np.uint8))
        entries += packed(self._transfers.entry, index=0, value=0, end=1)
        entry_bytes = transfer_bytes(self._transfers.entry)
        column_bytes = weights.shape[1]
        stream = weights.tobytes()
        whole = self._board.payload_bytes // self.config.port_bytes * self.config.port_bytes
        listed = sent = 0           # bytes of the list, and of the weights, that the device has
        while sent < len(stream):
            # The entries of a column leave the queue when its weights have come.
            room = (sent // column_bytes * batch + self._entry_queue) * entry_bytes
            self._send(Command.ENTRIES, entries[listed:room])
            listed = max(listed, min(room, len(entries)))
            # Only the weights of columns that the device knows of.
            known = listed // (batch * entry_bytes) * column_bytes
            end = min(sent + whole, len(stream))
            if known < end:
                end = max(sent, known // self.config.port_bytes * self.config.port_bytes)
            command = Command.WEIGHTS_LAST if end == len(stream) else Command.WEIGHTS
            self.link.request(command, stream[sent:end])
            sent = end
        self._send(Command.ENTRIES, entries[listed:])

    def _results(self, rows: int, groups: int, tail: int, batch: int) -> NDArray[np.int32]:
        """Read the results of a product, shape (batch, rows)."""
        config = self.config
        size = transfer_bytes(self._transfers.result)
        left = batch * ((groups - 1) * (config.lanes // config.result_lanes) + tail)
        data = b""
        while left:
            count = min(left, self._board.payload_bytes // size)
            reply = self.link.request(Command.RESULTS, count.to_bytes(COUNT_BYTES, "little"))
            data += self._board.checked(reply, count * size)
            left -= count
        transfers = np.frombuffer(data, np.uint8).reshape(-1, size)
        if transfers[:-1, -1].any() or not transfers[-1, -1]:
            raise DeviceError(f"The engine behind {self._board.name} must end its results after "
                              f"{len(transfers)} transfers")
        width = size // config.result_lanes
        values = transfers[:, :-1].reshape(batch, -1, width)
        # Into the upper bytes of 32 bits: the shift back extends the sign.
        wide = np.zeros((*values.shape[:2], 4), np.uint8)
        wide[:, :, 4 - width:] = values
        return (wide.view("<i4")[..., 0] >> 8 * (4 - width))[:, :rows].astype(np.int32)
