# Ref: litex-boards, sipeed_tang_nano_20k.py (pins of the board)
# Ref: Apicula, chip database of the GW2AR-18C in QFN88 (pads of the SDRAM in the package)

"""Pins of the Tang Nano 20K and the tools that fill its GW2AR-18; amaranth-boards has neither."""

from typing import ClassVar

from amaranth import *
from amaranth.build import Attrs, Clock, Pins, Resource
from amaranth.lib import io
from amaranth.vendor import GowinPlatform
from amaranth_boards.resources import SDRAMResource, UARTResource

__all__ = ["TangNano20KPlatform"]

# The stubs do not know what they are.
_TEMPLATES: dict = GowinPlatform._apicula_file_templates                # type: ignore[assignment]
_SYNTHESIS = GowinPlatform._apicula_command_templates[0]                # type: ignore[index]

_LVCMOS33 = Attrs(IO_TYPE="LVCMOS33")


class _RegisteredPins(io.FFBuffer):
    """Outputs, or pins of both directions, whose registers lie in the I/O cells.

    nextpnr packs them where attribute IOBFF asks for it. Flip-flops are instances: Yosys would make
    one of all that enable the drivers of a bus.
    """

    def elaborate(self, platform):
        m = Module()
        for bit, (pin, inverted) in enumerate(zip(self.port.io, self.port.invert, strict=True)):
            output = self._register(m, f"o_{bit}", self.o_domain, self.o[bit] ^ inverted)
            if self.direction is io.Direction.Output:
                m.submodules[f"buf_{bit}"] = Instance("OBUF", a_IOBFF=1, i_I=output, o_O=pin)
                continue
            value = Signal(name=f"value_{bit}")
            m.submodules[f"buf_{bit}"] = Instance(
                "IOBUF", a_IOBFF=1, i_I=output, o_O=value, io_IO=pin,
                i_OEN=self._register(m, f"oen_{bit}", self.o_domain, ~self.oe))
            m.d.comb += self.i[bit].eq(self._register(m, f"i_{bit}", self.i_domain, value)
                                       ^ inverted)
        return m

    @staticmethod
    def _register(m, name: str, domain: str, value) -> Signal:
        registered = Signal(name=f"{name}_registered")
        m.submodules[f"{name}_register"] = Instance("DFF", i_CLK=ClockSignal(domain), i_D=value,
                                                    o_Q=registered)
        return registered


class TangNano20KPlatform(GowinPlatform):
    """The pins that Tally uses: oscillator, serial port, SDRAM.

    Amaranth calls nextpnr-gowin, which no longer exists; here its successor is called.
    """

    part = "GW2AR-LV18QN88C8/I7"        # type: ignore[assignment]
    family = "GW2AR-18C"                # type: ignore[assignment]
    device = "GW2AR-18"
    default_clk = "clk27"       # type: ignore[assignment]
    resources = (               # type: ignore[assignment]
        Resource("clk27", 0, Pins("4", dir="i"), Clock(27e6), _LVCMOS33),
        UARTResource(0, rx="70", tx="69", attrs=_LVCMOS33),
        SDRAMResource(
            0, clk="IOR11B", cke="IOL13A", cs_n="IOL14B", cas_n="IOL14A", ras_n="IOL13B",
            we_n="IOL12B", dqm="IOL12A IOR11A IOL18A IOR15B", ba="IOR13A IOR12A",
            a="IOR14A IOR13B IOR14B IOR15A IOL16B IOL17B IOL16A IOL17A IOL15B IOL15A IOR12B",
            dq="IOL3A IOL3B IOL8A IOL8B IOL9A IOL9B IOL11A IOL11B "
               "IOR9B IOR9A IOR5B IOR6A IOR5A IOR4B IOR3B IOR3A "
               "IOL39B IOL39A IOL35B IOL35A IOL30B IOL30A IOL20A IOL18B "
               "IOR17A IOR16A IOR16B IOR17B IOR18A IOR18B IOR44A IOR44B", attrs=_LVCMOS33),
    )
    connectors = ()             # type: ignore[assignment]

    required_tools = (          # type: ignore[assignment]
        "yosys", "nextpnr-himbaechel-gowin", "gowin_pack")
    file_templates: ClassVar = {        # type: ignore[misc]
        **_TEMPLATES,
        # The netlist has the name that those of other boards have.
        "{{name}}.ys": _TEMPLATES["{{name}}.ys"].replace("{{name}}.syn.json", "{{name}}.json"),
    }
    # nextpnr tries for hours to place a flip-flop that fits nowhere, unless its attempts are fewer:
    # the cells squared, divided by this number.
    command_templates = (       # type: ignore[assignment]
        _SYNTHESIS,
        r"""
        {{invoke_tool("nextpnr-himbaechel-gowin")}}
            {{quiet("--quiet")}}
            {{get_override("nextpnr_opts")|options}}
            --placer-heap-cell-placement-timeout 4000
            --log {{name}}.tim
            --device {{platform.part}}
            --vopt family=GW2A-18C
            --vopt cst={{name}}.cst
            --json {{name}}.json
            --write {{name}}.pnr.json
        """,
        r"""
        {{invoke_tool("gowin_pack")}}
            -d GW2A-18C
            -o {{name}}.fs
            {{get_override("gowin_pack_opts")|options}}
            {{name}}.pnr.json
        """,
    )

    def get_io_buffer(self, buffer):
        if not isinstance(buffer, io.FFBuffer) or buffer.direction is io.Direction.Input:
            return super().get_io_buffer(buffer)
        result = _RegisteredPins(buffer.direction, buffer.port, i_domain=buffer.i_domain,
                                 o_domain=buffer.o_domain)
        result.o, result.oe = buffer.o, buffer.oe       # type: ignore[misc]
        if buffer.direction is io.Direction.Bidir:
            result.i = buffer.i                         # type: ignore[misc]
        return result
