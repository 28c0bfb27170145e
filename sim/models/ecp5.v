// Behavioural models of the ECP5 cells that hw/engine and hw/common instantiates, for simulation only.
//
// LUT4, CCU2C and TRELLIS_FF are proved equal to the models that Yosys ships (tests/hw/test_ecp5.py),
// and give way to these where YOSYS_MODELS is defined.
// Of the block RAM nobody ships one: Yosys' own is a black box. PDPW16KD is written here from
// Lattice's description (FPGA-TN-02204) and models what the engine uses: 36 bits on both ports, one
// clock, output register, no reset, decoded chip selects at 0.

`ifndef YOSYS_MODELS
module LUT4 (input A, B, C, D, output Z);
    parameter [15:0] INIT = 0;
    assign Z = INIT[{D, C, B, A}];
endmodule

module CCU2C (
    input CIN, A0, B0, C0, D0, A1, B1, C1, D1,
    output S0, S1, COUT
);
    parameter [15:0] INIT0 = 0, INIT1 = 0;
    parameter INJECT1_0 = "YES", INJECT1_1 = "YES";
    localparam INJECT0 = INJECT1_0 == "YES", INJECT1 = INJECT1_1 == "YES";

    wire propagate0 = INIT0[{D0, C0, B0, A0}];
    wire generate0 = INIT0[{2'b00, B0, A0}] & !INJECT0;
    wire carry = propagate0 ? CIN : generate0;
    wire propagate1 = INIT1[{D1, C1, B1, A1}];
    wire generate1 = INIT1[{2'b00, B1, A1}] & !INJECT1;

    assign S0 = propagate0 ^ (CIN & !INJECT0);
    assign S1 = propagate1 ^ (carry & !INJECT1);
    assign COUT = propagate1 ? carry : generate1;
endmodule

module TRELLIS_FF (input CLK, LSR, DI, output reg Q);
    parameter GSR = "ENABLED", CEMUX = "1", CLKMUX = "CLK", LSRMUX = "LSR", REGSET = "RESET";
    initial Q = 0;
    always @(posedge CLK) Q <= LSR ? 1'b0 : DI;
endmodule
`endif

module PDPW16KD (
    input DI35, DI34, DI33, DI32, DI31, DI30, DI29, DI28, DI27, DI26, DI25, DI24, DI23, DI22, DI21,
        DI20, DI19, DI18, DI17, DI16, DI15, DI14, DI13, DI12, DI11, DI10, DI9, DI8, DI7, DI6,
        DI5, DI4, DI3, DI2, DI1, DI0, ADW8, ADW7, ADW6, ADW5, ADW4, ADW3, ADW2, ADW1, ADW0,
        BE3, BE2, BE1, BE0, CEW, CLKW, CSW2, CSW1, CSW0, ADR13, ADR12, ADR11, ADR10, ADR9,
        ADR8, ADR7, ADR6, ADR5, ADR4, ADR3, ADR2, ADR1, ADR0, CER, OCER, CLKR, CSR2, CSR1,
        CSR0, RST,
    output DO35, DO34, DO33, DO32, DO31, DO30, DO29, DO28, DO27, DO26, DO25, DO24, DO23, DO22, DO21,
        DO20, DO19, DO18, DO17, DO16, DO15, DO14, DO13, DO12, DO11, DO10, DO9, DO8, DO7, DO6,
        DO5, DO4, DO3, DO2, DO1, DO0
);
    parameter DATA_WIDTH_W = 36, DATA_WIDTH_R = 36;
    parameter REGMODE = "NOREG", GSR = "ENABLED";

    wire [35:0] written = {DI35, DI34, DI33, DI32, DI31, DI30, DI29, DI28, DI27, DI26, DI25, DI24, DI23, DI22,
        DI21, DI20, DI19, DI18, DI17, DI16, DI15, DI14, DI13, DI12, DI11, DI10, DI9,
        DI8, DI7, DI6, DI5, DI4, DI3, DI2, DI1, DI0};
    wire [8:0] write_address = {ADW8, ADW7, ADW6, ADW5, ADW4, ADW3, ADW2, ADW1, ADW0};
    wire [3:0] enables = {BE3, BE2, BE1, BE0};
    wire [8:0] read_address = {ADR13, ADR12, ADR11, ADR10, ADR9, ADR8, ADR7, ADR6, ADR5};
    wire unselected = CSW2 | CSW1 | CSW0 | CSR2 | CSR1 | CSR0;

    reg [35:0] words [0:511];
    reg [35:0] looked_up = 0, out = 0;
    integer k;
    initial for (k = 0; k < 512; k = k + 1) words[k] = 0;

    always @(posedge CLKW)
        if (CEW & !unselected)
            for (k = 0; k < 4; k = k + 1)
                if (enables[k]) words[write_address][9 * k +: 9] <= written[9 * k +: 9];

    // A word read while it is written is undefined: inverted here, so that nobody gets away with it.
    wire collision = CEW & |enables & (write_address == read_address);
    always @(posedge CLKR) begin
        if (CER & !unselected) looked_up <= collision ? ~words[read_address] : words[read_address];
        if (OCER) out <= looked_up;
    end
    assign {DO35, DO34, DO33, DO32, DO31, DO30, DO29, DO28, DO27, DO26, DO25, DO24, DO23, DO22,
        DO21, DO20, DO19, DO18, DO17, DO16, DO15, DO14, DO13, DO12, DO11, DO10, DO9,
        DO8, DO7, DO6, DO5, DO4, DO3, DO2, DO1, DO0} = REGMODE == "OUTREG" ? out : looked_up;

`ifndef YOSYS
    initial if (DATA_WIDTH_W != 36 || DATA_WIDTH_R != 36) $fatal(1, "PDPW16KD: widths must be 36");
`endif
endmodule
