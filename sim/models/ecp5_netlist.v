// Cells that synthesis alone puts into an ECP5 netlist and of which Yosys has no model.
//
// DP16KD follows what Yosys' mapping to it (lattice/brams_16kd.txt, lattice/brams_map_16kd.v) and
// Lattice's description (FPGA-TN-02204) say: 512 rows of 36 bits, a port is 1 to 36 bits wide, no
// output register, chip selects at 0, clocks not inverted. Bits that one port reads while the other
// writes them are undefined: inverted here, so that nobody gets away with it.

module DP16KD (
    input DIA17, DIA16, DIA15, DIA14, DIA13, DIA12, DIA11, DIA10, DIA9, DIA8, DIA7, DIA6, DIA5,
    DIA4, DIA3, DIA2, DIA1, DIA0, ADA13, ADA12, ADA11, ADA10, ADA9, ADA8, ADA7, ADA6, ADA5,
    ADA4, ADA3, ADA2, ADA1, ADA0, CEA, OCEA, CLKA, WEA, RSTA, CSA2, CSA1, CSA0,
    input DIB17, DIB16, DIB15, DIB14, DIB13, DIB12, DIB11, DIB10, DIB9, DIB8, DIB7, DIB6, DIB5,
    DIB4, DIB3, DIB2, DIB1, DIB0, ADB13, ADB12, ADB11, ADB10, ADB9, ADB8, ADB7, ADB6, ADB5,
    ADB4, ADB3, ADB2, ADB1, ADB0, CEB, OCEB, CLKB, WEB, RSTB, CSB2, CSB1, CSB0,
    output DOA17, DOA16, DOA15, DOA14, DOA13, DOA12, DOA11, DOA10, DOA9, DOA8, DOA7, DOA6, DOA5,
    DOA4, DOA3, DOA2, DOA1, DOA0, DOB17, DOB16, DOB15, DOB14, DOB13, DOB12, DOB11, DOB10, DOB9,
    DOB8, DOB7, DOB6, DOB5, DOB4, DOB3, DOB2, DOB1, DOB0
);
    parameter DATA_WIDTH_A = 18, DATA_WIDTH_B = 18;
    parameter [127:0] REGMODE_A = "NOREG", REGMODE_B = "NOREG", RESETMODE = "SYNC",
        ASYNC_RESET_RELEASE = "SYNC", CSDECODE_A = "0b000", CSDECODE_B = "0b000",
        WRITEMODE_A = "NORMAL", WRITEMODE_B = "NORMAL", CLKAMUX = "CLKA", CLKBMUX = "CLKB",
        GSR = "AUTO";
    parameter [319:0] INITVAL_00 = 0, INITVAL_01 = 0, INITVAL_02 = 0, INITVAL_03 = 0, INITVAL_04
    = 0, INITVAL_05 = 0, INITVAL_06 = 0, INITVAL_07 = 0, INITVAL_08 = 0, INITVAL_09 = 0,
    INITVAL_0A = 0, INITVAL_0B = 0, INITVAL_0C = 0, INITVAL_0D = 0, INITVAL_0E = 0, INITVAL_0F =
    0, INITVAL_10 = 0, INITVAL_11 = 0, INITVAL_12 = 0, INITVAL_13 = 0, INITVAL_14 = 0,
    INITVAL_15 = 0, INITVAL_16 = 0, INITVAL_17 = 0, INITVAL_18 = 0, INITVAL_19 = 0, INITVAL_1A =
    0, INITVAL_1B = 0, INITVAL_1C = 0, INITVAL_1D = 0, INITVAL_1E = 0, INITVAL_1F = 0,
    INITVAL_20 = 0, INITVAL_21 = 0, INITVAL_22 = 0, INITVAL_23 = 0, INITVAL_24 = 0, INITVAL_25 =
    0, INITVAL_26 = 0, INITVAL_27 = 0, INITVAL_28 = 0, INITVAL_29 = 0, INITVAL_2A = 0,
    INITVAL_2B = 0, INITVAL_2C = 0, INITVAL_2D = 0, INITVAL_2E = 0, INITVAL_2F = 0, INITVAL_30 =
    0, INITVAL_31 = 0, INITVAL_32 = 0, INITVAL_33 = 0, INITVAL_34 = 0, INITVAL_35 = 0,
    INITVAL_36 = 0, INITVAL_37 = 0, INITVAL_38 = 0, INITVAL_39 = 0, INITVAL_3A = 0, INITVAL_3B =
    0, INITVAL_3C = 0, INITVAL_3D = 0, INITVAL_3E = 0, INITVAL_3F = 0;
    wire [64 * 320 - 1:0] contents = {INITVAL_3F, INITVAL_3E, INITVAL_3D, INITVAL_3C,
    INITVAL_3B, INITVAL_3A, INITVAL_39, INITVAL_38, INITVAL_37, INITVAL_36, INITVAL_35,
    INITVAL_34, INITVAL_33, INITVAL_32, INITVAL_31, INITVAL_30, INITVAL_2F, INITVAL_2E,
    INITVAL_2D, INITVAL_2C, INITVAL_2B, INITVAL_2A, INITVAL_29, INITVAL_28, INITVAL_27,
    INITVAL_26, INITVAL_25, INITVAL_24, INITVAL_23, INITVAL_22, INITVAL_21, INITVAL_20,
    INITVAL_1F, INITVAL_1E, INITVAL_1D, INITVAL_1C, INITVAL_1B, INITVAL_1A, INITVAL_19,
    INITVAL_18, INITVAL_17, INITVAL_16, INITVAL_15, INITVAL_14, INITVAL_13, INITVAL_12,
    INITVAL_11, INITVAL_10, INITVAL_0F, INITVAL_0E, INITVAL_0D, INITVAL_0C, INITVAL_0B,
    INITVAL_0A, INITVAL_09, INITVAL_08, INITVAL_07, INITVAL_06, INITVAL_05, INITVAL_04,
    INITVAL_03, INITVAL_02, INITVAL_01, INITVAL_00};

    // Place of a port's lowest bit in the row; rows are named by bits 13 to 5 of an address.
    function [5:0] place(input integer width, input [13:0] address);
        place = width == 36 ? 0 : 18 * address[4] + (
            width == 18 ? 0 : 9 * address[3] + (
            width == 9 ? 0 : width == 4 ? 4 * address[2] : width == 2 ? 2 * address[2:1]
            : address[2:0]));
    endfunction

    // Bits of the row that a port writes. Wide ports have enables of bytes in their lowest address.
    function [35:0] mask(input integer width, input [13:0] address);
        mask = width == 36 ? {{9{address[3]}}, {9{address[2]}}, {9{address[1]}}, {9{address[0]}}}
            : (width == 18 ? {{9{address[1]}}, {9{address[0]}}}
               : (36'd1 << width) - 36'd1) << place(width, address);
    endfunction

    wire [13:0] address_a = {ADA13, ADA12, ADA11, ADA10, ADA9, ADA8, ADA7, ADA6, ADA5, ADA4, ADA3,
        ADA2, ADA1, ADA0};
    wire [13:0] address_b = {ADB13, ADB12, ADB11, ADB10, ADB9, ADB8, ADB7, ADB6, ADB5, ADB4, ADB3,
        ADB2, ADB1, ADB0};
    wire [17:0] data_b = {DIB17, DIB16, DIB15, DIB14, DIB13, DIB12, DIB11, DIB10, DIB9, DIB8,
        DIB7, DIB6, DIB5, DIB4, DIB3, DIB2, DIB1, DIB0};
    wire [35:0] data_a = {DATA_WIDTH_A == 36 ? data_b : 18'd0, DIA17, DIA16, DIA15, DIA14, DIA13,
        DIA12, DIA11, DIA10, DIA9, DIA8, DIA7, DIA6, DIA5, DIA4, DIA3, DIA2, DIA1, DIA0};
    wire [35:0] written_a = CEA & WEA & !RSTA ? mask(DATA_WIDTH_A, address_a) : 36'd0;
    wire [35:0] written_b = CEB & WEB & !RSTB ? mask(DATA_WIDTH_B, address_b) : 36'd0;
    wire same_row = address_a[13:5] == address_b[13:5];

    reg [35:0] rows [0:511];
    integer k;
    initial for (k = 0; k < 512; k = k + 1)
        rows[k] = {contents[20 * (2 * k + 1) +: 18], contents[20 * 2 * k +: 18]};

    reg [35:0] out_a = 0, out_b = 0;
    wire [35:0] row_a = rows[address_a[13:5]], row_b = rows[address_b[13:5]];
    wire [35:0] new_a = data_a << place(DATA_WIDTH_A, address_a);
    wire [35:0] new_b = {18'd0, data_b} << place(DATA_WIDTH_B, address_b);

    always @(posedge CLKA) begin
        for (k = 0; k < 36; k = k + 1)
            if (written_a[k]) rows[address_a[13:5]][k] <= new_a[k];
        if (RSTA) out_a <= 0;
        else if (CEA & !(WEA & WRITEMODE_A == "NORMAL"))
            out_a <= (WRITEMODE_A == "WRITETHROUGH" & WEA
                      ? (row_a & ~written_a) | (new_a & written_a)
                      : row_a ^ (same_row ? written_b : 36'd0)) >> place(DATA_WIDTH_A, address_a);
    end
    integer j;
    always @(posedge CLKB) begin
        for (j = 0; j < 36; j = j + 1)
            if (written_b[j]) rows[address_b[13:5]][j] <= new_b[j];
        if (RSTB) out_b <= 0;
        else if (CEB & !(WEB & WRITEMODE_B == "NORMAL"))
            out_b <= (WRITEMODE_B == "WRITETHROUGH" & WEB
                      ? (row_b & ~written_b) | (new_b & written_b)
                      : row_b ^ (same_row ? written_a : 36'd0)) >> place(DATA_WIDTH_B, address_b);
    end

    // Port B reads 36 bits through the outputs of both.
    assign {DOA17, DOA16, DOA15, DOA14, DOA13, DOA12, DOA11, DOA10, DOA9, DOA8, DOA7, DOA6, DOA5,
        DOA4, DOA3, DOA2, DOA1, DOA0}
        = DATA_WIDTH_B == 36 ? out_b[17:0] : out_a[17:0];
    assign {DOB17, DOB16, DOB15, DOB14, DOB13, DOB12, DOB11, DOB10, DOB9, DOB8, DOB7, DOB6, DOB5,
        DOB4, DOB3, DOB2, DOB1, DOB0}
        = DATA_WIDTH_B == 36 ? out_b[35:18] : out_b[17:0];

`ifndef YOSYS
    initial if (REGMODE_A != "NOREG" || REGMODE_B != "NOREG" || CLKAMUX != "CLKA"
                || CLKBMUX != "CLKB")
        $fatal(1, "DP16KD: a mode without a model");
    // Yosys chooses an asynchronous reset for memories that have none.
    always @(posedge CLKA) if (RESETMODE != "SYNC" && (RSTA || RSTB))
        $fatal(1, "DP16KD: an asynchronous reset has no model");
`endif
endmodule
