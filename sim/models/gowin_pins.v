// Cells at the pins of a whole board with a Gowin FPGA, as Verilator can simulate them.

module IBUF (input I, output O);
    assign O = I;
endmodule

module OBUF (input I, output O);
    assign O = I;
endmodule

module TBUF (input I, OEN, output O);
    assign O = I;
`ifndef YOSYS
    always @(*) if (OEN) $fatal(1, "An output pin that stops driving has no model");
`endif
endmodule

// IO is what the other side drives; what this one does is I where OEN is 0.
module IOBUF (input I, OEN, IO, output O);
    assign O = OEN ? IO : I;
endmodule

// An output that changes twice a cycle: D0 in its first half, D1 in its second. The cycles that the
// cell takes are left out: the boards' inputs are constants, which make a clock of it.
module ODDR (input CLK, D0, D1, TX, output Q0, Q1);
    parameter TXCLK_POL = 0, INIT = 0;
    assign Q0 = CLK ? D0 : D1, Q1 = TX;
endmodule

// The PLL hands its clock on: the simulation of a whole board counts cycles of CLKOUT. CLKOUTP
// clocks cells of pins only, which have no cycle of their own here.
module rPLL (
    input CLKIN, CLKFB, RESET, RESET_P, input [5:0] FBDSEL, IDSEL, ODSEL,
    input [3:0] PSDA, DUTYDA, FDLY, output CLKOUT, CLKOUTP, CLKOUTD, CLKOUTD3, LOCK
);
    parameter IDIV_SEL = 0, FBDIV_SEL = 0, ODIV_SEL = 8;
    parameter [127:0] FCLKIN = "27", DEVICE = "GW2AR-18C", PSDA_SEL = "0000", DUTYDA_SEL = "1000",
        CLKFB_SEL = "internal", DYN_IDIV_SEL = "false", DYN_FBDIV_SEL = "false",
        DYN_ODIV_SEL = "false", DYN_DA_EN = "false";
    reg [3:0] cycles = 0;
    assign CLKOUT = CLKIN, CLKOUTP = CLKIN, CLKOUTD = CLKIN, CLKOUTD3 = CLKIN, LOCK = &cycles;
    always @(posedge CLKIN) if (!LOCK) cycles <= cycles + 1;
endmodule
