"""C: each compressed instruction as the instruction it expands to. (Unpriv. "C")

Reserved encodings do not decode; hints decode and do nothing, as their expansion writes x0 or
changes nothing. Zcf does not exist on RV64, so the places of c.flw are c.ld's.
"""

from kasou.isa.encoding import compressed

# fmt: off

# Quadrant 0 (Unpriv. "C", Register-Based Loads and Stores)
compressed("c.addi4spn", "000 uimm[5:4|9:6|2|3]!=0 rd' 00", "{rd}, sp, {uimm}", "addi", rd="rd", rs1=2, imm="uimm")
compressed("c.fld", "001 uimm[5:3] rs1' uimm[7:6] fd' 00",  "{fd}, {uimm}({rs1})",  "fld", fd="fd", rs1="rs1", imm="uimm")
compressed("c.lw",  "010 uimm[5:3] rs1' uimm[2|6] rd' 00",  "{rd}, {uimm}({rs1})",  "lw",  rd="rd", rs1="rs1", imm="uimm")
compressed("c.ld",  "011 uimm[5:3] rs1' uimm[7:6] rd' 00",  "{rd}, {uimm}({rs1})",  "ld",  rd="rd", rs1="rs1", imm="uimm")
compressed("c.fsd", "101 uimm[5:3] rs1' uimm[7:6] fs2' 00", "{fs2}, {uimm}({rs1})", "fsd", fs2="fs2", rs1="rs1", imm="uimm")
compressed("c.sw",  "110 uimm[5:3] rs1' uimm[2|6] rs2' 00", "{rs2}, {uimm}({rs1})", "sw",  rs2="rs2", rs1="rs1", imm="uimm")
compressed("c.sd",  "111 uimm[5:3] rs1' uimm[7:6] rs2' 00", "{rs2}, {uimm}({rs1})", "sd",  rs2="rs2", rs1="rs1", imm="uimm")

# Quadrant 1 (Unpriv. "C", Integer Computational Instructions, Control Transfer Instructions)
compressed("c.nop",   "000 imm[5] 00000 imm[4:0] 01",      "{imm}",         "addi",  imm="imm")
compressed("c.addi",  "000 imm[5] rd!=0 imm[4:0] 01",      "{rd}, {imm}",   "addi",  rd="rd", rs1="rd", imm="imm")
compressed("c.addiw", "001 imm[5] rd!=0 imm[4:0] 01",      "{rd}, {imm}",   "addiw", rd="rd", rs1="rd", imm="imm")
compressed("c.li",    "010 imm[5] rd imm[4:0] 01",         "{rd}, {imm}",   "addi",  rd="rd", imm="imm")
compressed("c.addi16sp", "011 imm[9]!=0 00010 imm[4|6|8:7|5] 01", "sp, {imm}", "addi", rd=2, rs1=2, imm="imm")
compressed("c.lui",   "011 imm[17]!=0 rd!=2 imm[16:12] 01", "{rd}, {imm}",   "lui",   rd="rd", imm="imm")
compressed("c.srli",  "100 shamt[5] 00 rd' shamt[4:0] 01", "{rd}, {shamt}", "srli",  rd="rd", rs1="rd", shamt="shamt")
compressed("c.srai",  "100 shamt[5] 01 rd' shamt[4:0] 01", "{rd}, {shamt}", "srai",  rd="rd", rs1="rd", shamt="shamt")
compressed("c.andi",  "100 imm[5] 10 rd' imm[4:0] 01",     "{rd}, {imm}",   "andi",  rd="rd", rs1="rd", imm="imm")
compressed("c.sub",   "100 0 11 rd' 00 rs2' 01",           "{rd}, {rs2}",   "sub",   rd="rd", rs1="rd", rs2="rs2")
compressed("c.xor",   "100 0 11 rd' 01 rs2' 01",           "{rd}, {rs2}",   "xor",   rd="rd", rs1="rd", rs2="rs2")
compressed("c.or",    "100 0 11 rd' 10 rs2' 01",           "{rd}, {rs2}",   "or",    rd="rd", rs1="rd", rs2="rs2")
compressed("c.and",   "100 0 11 rd' 11 rs2' 01",           "{rd}, {rs2}",   "and",   rd="rd", rs1="rd", rs2="rs2")
compressed("c.subw",  "100 1 11 rd' 00 rs2' 01",           "{rd}, {rs2}",   "subw",  rd="rd", rs1="rd", rs2="rs2")
compressed("c.addw",  "100 1 11 rd' 01 rs2' 01",           "{rd}, {rs2}",   "addw",  rd="rd", rs1="rd", rs2="rs2")
compressed("c.j",     "101 imm[11|4|9:8|10|6|7|3:1|5] 01", "{imm}",         "jal",   imm="imm")
compressed("c.beqz",  "110 imm[8|4:3] rs1' imm[7:6|2:1|5] 01", "{rs1}, {imm}", "beq", rs1="rs1", imm="imm")
compressed("c.bnez",  "111 imm[8|4:3] rs1' imm[7:6|2:1|5] 01", "{rs1}, {imm}", "bne", rs1="rs1", imm="imm")

# Quadrant 2 (Unpriv. "C", Stack-Pointer-Based Loads and Stores)
compressed("c.slli",  "000 shamt[5] rd shamt[4:0] 10",     "{rd}, {shamt}",     "slli", rd="rd", rs1="rd", shamt="shamt")
compressed("c.fldsp", "001 uimm[5] fd uimm[4:3|8:6] 10",   "{fd}, {uimm}(sp)",  "fld",  fd="fd", rs1=2, imm="uimm")
compressed("c.lwsp",  "010 uimm[5] rd!=0 uimm[4:2|7:6] 10", "{rd}, {uimm}(sp)", "lw",   rd="rd", rs1=2, imm="uimm")
compressed("c.ldsp",  "011 uimm[5] rd!=0 uimm[4:3|8:6] 10", "{rd}, {uimm}(sp)", "ld",   rd="rd", rs1=2, imm="uimm")
compressed("c.jr",    "100 0 rs1!=0 00000 10",             "{rs1}",             "jalr", rs1="rs1")
compressed("c.mv",    "100 0 rd rs2!=0 10",                "{rd}, {rs2}",       "add",  rd="rd", rs2="rs2")
compressed("c.ebreak", "100 1 00000 00000 10",             "",                  "ebreak")
compressed("c.jalr",  "100 1 rs1!=0 00000 10",             "{rs1}",             "jalr", rd=1, rs1="rs1")
compressed("c.add",   "100 1 rd rs2!=0 10",                "{rd}, {rs2}",       "add",  rd="rd", rs1="rd", rs2="rs2")
compressed("c.fsdsp", "101 uimm[5:3|8:6] fs2 10",          "{fs2}, {uimm}(sp)", "fsd",  fs2="fs2", rs1=2, imm="uimm")
compressed("c.swsp",  "110 uimm[5:2|7:6] rs2 10",          "{rs2}, {uimm}(sp)", "sw",   rs2="rs2", rs1=2, imm="uimm")
compressed("c.sdsp",  "111 uimm[5:3|8:6] rs2 10",          "{rs2}, {uimm}(sp)", "sd",   rs2="rs2", rs1=2, imm="uimm")
# fmt: on
