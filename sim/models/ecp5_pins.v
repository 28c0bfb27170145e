// Cells at the pins of a whole board, as Verilator can simulate them.

// TRELLIS_IO by its direction. Yosys' model has a tristate pin, which Verilator takes in few places.
module INPUT_pin (input B, I, T, output O);
    assign O = B;
endmodule

module OUTPUT_pin (output B, O, input I, T);
    assign B = I, O = 0;
    always @(*) if (T) $fatal(1, "An output pin that stops driving has no model");
endmodule

// B is what the other side drives; what this one does is I where T is 0.
module BIDIR_pin (input B, I, T, output O);
    assign O = T ? B : I;
endmodule

// An output that changes twice a cycle: D0 in its first half, D1 in its second. The cycles that the
// cell takes are left out: the boards' inputs are constants, which make a clock of it.
module ODDRX1F (input SCLK, RST, D0, D1, output Q);
    assign Q = SCLK ? D0 : D1;
endmodule

// The PLL hands clocks on: the simulation of a whole board counts cycles of CLKOP, and that of an
// SDRAM with a clock of its own, CLKOS2, is an input of module `board` around the top. CLKOS clocks
// cells of pins only, which have no cycle of their own here; its phase is not simulated.
module EHXPLLL (
    input CLKI, CLKFB, PHASESEL1, PHASESEL0, PHASEDIR, PHASESTEP, PHASELOADREG, STDBY,
        PLLWAKESYNC, RST, ENCLKOP, ENCLKOS, ENCLKOS2,
    output CLKOP, CLKOS, CLKOS2, LOCK
);
    parameter CLKI_DIV = 1, CLKFB_DIV = 1, CLKOP_DIV = 8, CLKOP_CPHASE = 0, CLKOP_FPHASE = 0,
        CLKOS_DIV = 8, CLKOS_CPHASE = 0, CLKOS_FPHASE = 0, CLKOS2_DIV = 8, CLKOS2_CPHASE = 0,
        CLKOS2_FPHASE = 0;
    parameter [127:0] CLKOP_ENABLE = "ENABLED", CLKOS_ENABLE = "DISABLED",
        CLKOS2_ENABLE = "DISABLED", FEEDBK_PATH = "CLKOP", PLLRST_ENA = "DISABLED",
        INTFB_WAKE = "DISABLED", STDBY_ENABLE = "DISABLED", DPHASE_SOURCE = "DISABLED",
        OUTDIVIDER_MUXA = "DIVA", OUTDIVIDER_MUXB = "DIVB", OUTDIVIDER_MUXC = "DIVC";
    reg [3:0] cycles = 0;
    assign CLKOP = CLKI, CLKOS = CLKI, CLKOS2 = board.memory_clk, LOCK = &cycles;
    always @(posedge CLKI) if (!LOCK) cycles <= cycles + 1;
endmodule
