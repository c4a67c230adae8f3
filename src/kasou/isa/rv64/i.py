"""RV64I: the base integer instruction set, with Zifencei and the hints of Zihintpause.

Every instruction is one function: encoding, assembly, meaning, and the section it comes from
(The RISC-V Instruction Set Manual, Volume I, chapters 2 and 4). `hart` is any context of the value
protocol (`kasou.isa.word`): ints in the reference model, LLVM values when staged.
"""

from __future__ import annotations

from typing import Any

from kasou.isa.encoding import insn
from kasou.isa.trap import Cause, Trap
from kasou.isa.word import flag


@insn("imm[31:12] rd 0110111", asm="{rd}, {imm}")
def lui(hart: Any, rd: Any, imm: Any) -> None:
    """rd = imm. (Unpriv. 2.4.1)"""
    hart.x[rd] = imm


@insn("imm[31:12] rd 0010111", asm="{rd}, {imm}")
def auipc(hart: Any, rd: Any, imm: Any) -> None:
    """rd = pc + imm. (Unpriv. 2.4.1)"""
    hart.x[rd] = hart.pc + imm


@insn("imm[20|10:1|11|19:12] rd 1101111", asm="{rd}, {imm}", flow="branch")
def jal(hart: Any, rd: Any, imm: Any) -> None:
    """rd = address of the next instruction; jump to pc + imm. (Unpriv. 2.5.1)"""
    hart.x[rd] = hart.next_pc
    hart.branch(imm)


@insn("imm[11:0] rs1 000 rd 1100111", asm="{rd}, {imm}({rs1})", flow="jump")
def jalr(hart: Any, rd: Any, rs1: Any, imm: Any) -> None:
    """rd = address of the next instruction; jump to rs1 + imm with bit 0 cleared. (Unpriv. 2.5.1)"""
    target = (hart.x[rs1] + imm) & ~1
    hart.x[rd] = hart.next_pc
    hart.jump(target)


def _branch(funct3: str, name: str, holds: Any, meaning: str) -> None:
    def branch(hart: Any, rs1: Any, rs2: Any, imm: Any) -> None:
        if holds(hart.x[rs1], hart.x[rs2]):
            hart.branch(imm)

    branch.__doc__ = f"Branch to pc + imm if rs1 {meaning} rs2. (Unpriv. 2.5.2)"
    encoding = f"imm[12|10:5] rs2 rs1 {funct3} imm[4:1|11] 1100011"
    insn(encoding, asm="{rs1}, {rs2}, {imm}", name=name, flow="branch")(branch)


# fmt: off
_branch("000", "beq",  lambda a, b: a == b,   "equals")
_branch("001", "bne",  lambda a, b: a != b,   "differs from")
_branch("100", "blt",  lambda a, b: a.lts(b), "is less than")
_branch("101", "bge",  lambda a, b: a.ges(b), "is not less than")
_branch("110", "bltu", lambda a, b: a.ltu(b), "is less, unsigned, than")
_branch("111", "bgeu", lambda a, b: a.geu(b), "is not less, unsigned, than")
# fmt: on


def _load(funct3: str, name: str, width: int, signed: bool) -> None:
    def load(hart: Any, rd: Any, rs1: Any, imm: Any) -> None:
        value = hart.load(hart.x[rs1] + imm, width)
        hart.x[rd] = value.sext(8 * width) if signed and width < 8 else value

    extended = "sign-extended" if signed else "zero-extended"
    load.__doc__ = f"rd = {8 * width} bits at rs1 + imm, {extended}. (Unpriv. 2.6, 4.3)"
    insn(f"imm[11:0] rs1 {funct3} rd 0000011", asm="{rd}, {imm}({rs1})", name=name)(load)


def _store(funct3: str, name: str, width: int) -> None:
    def store(hart: Any, rs1: Any, rs2: Any, imm: Any) -> None:
        hart.store(hart.x[rs1] + imm, hart.x[rs2], width)

    store.__doc__ = f"Store the low {8 * width} bits of rs2 at rs1 + imm. (Unpriv. 2.6, 4.3)"
    encoding = f"imm[11:5] rs2 rs1 {funct3} imm[4:0] 0100011"
    insn(encoding, asm="{rs2}, {imm}({rs1})", name=name)(store)


for _log2, _letter in enumerate("bhwd"):
    _load(f"{_log2:03b}", f"l{_letter}", 1 << _log2, True)
    _store(f"{_log2:03b}", f"s{_letter}", 1 << _log2)
for _log2, _letter in enumerate("bhw"):
    _load(f"1{_log2:02b}", f"l{_letter}u", 1 << _log2, False)


def alu(
    name: str, funct7: str, funct3: str, f: Any, meaning: str, opcode: str = "0110011", source: str = "2.4.2"
) -> None:  # fmt: skip
    """Define a register-register instruction rd = f(rs1, rs2)."""

    def register(hart: Any, rd: Any, rs1: Any, rs2: Any) -> None:
        hart.x[rd] = f(hart.x[rs1], hart.x[rs2])

    register.__module__ = f.__module__  # the extension that the meaning stands in
    register.__doc__ = f"rd = {meaning}. (Unpriv. {source})"
    insn(f"{funct7} rs2 rs1 {funct3} rd {opcode}", asm="{rd}, {rs1}, {rs2}", name=name)(register)


def alu_immediate(
    name: str, operand: str, funct3: str, f: Any, meaning: str, opcode: str = "0010011", source: str = "2.4.1"
) -> None:  # fmt: skip
    """Define a register-immediate instruction; `operand` is the encoding's immediate part."""
    text: Any
    if operand.startswith("imm"):

        def text(hart: Any, rd: Any, rs1: Any, imm: Any) -> None:
            hart.x[rd] = f(hart.x[rs1], imm)

        asm = "{rd}, {rs1}, {imm}"
    else:

        def text(hart: Any, rd: Any, rs1: Any, shamt: Any) -> None:
            hart.x[rd] = f(hart.x[rs1], shamt)

        asm = "{rd}, {rs1}, {shamt}"
    text.__module__ = f.__module__
    text.__doc__ = f"rd = {meaning}. (Unpriv. {source})"
    insn(f"{operand} rs1 {funct3} rd {opcode}", asm=asm, name=name)(text)


def _sllw(a: Any, b: Any) -> Any:
    return (a << (b & 31)).sext(32)


def _srlw(a: Any, b: Any) -> Any:
    return (a.zext(32) >> (b & 31)).sext(32)


def _sraw(a: Any, b: Any) -> Any:
    return a.sext(32).sra(b & 31)


_W, _IW = "0111011", "0011011"
# fmt: off
alu("add",  "0000000", "000", lambda a, b: a + b,             "rs1 + rs2")
alu("sub",  "0100000", "000", lambda a, b: a - b,             "rs1 - rs2")
alu("sll",  "0000000", "001", lambda a, b: a << (b & 63),     "rs1 << rs2[5:0]")
alu("slt",  "0000000", "010", lambda a, b: flag(a.lts(b)),    "1 if rs1 < rs2, signed, else 0")
alu("sltu", "0000000", "011", lambda a, b: flag(a.ltu(b)),    "1 if rs1 < rs2, unsigned, else 0")
alu("xor",  "0000000", "100", lambda a, b: a ^ b,             "rs1 ^ rs2")
alu("srl",  "0000000", "101", lambda a, b: a >> (b & 63),     "rs1 >> rs2[5:0], logical")
alu("sra",  "0100000", "101", lambda a, b: a.sra(b & 63),     "rs1 >> rs2[5:0], arithmetic")
alu("or",   "0000000", "110", lambda a, b: a | b,             "rs1 | rs2")
alu("and",  "0000000", "111", lambda a, b: a & b,             "rs1 & rs2")
alu("addw", "0000000", "000", lambda a, b: (a + b).sext(32),  "32 bits of rs1 + rs2, sign-extended", _W, "4.2.2")
alu("subw", "0100000", "000", lambda a, b: (a - b).sext(32),  "32 bits of rs1 - rs2, sign-extended", _W, "4.2.2")
alu("sllw", "0000000", "001", _sllw, "32 bits of rs1 << rs2[4:0], sign-extended", _W, "4.2.2")
alu("srlw", "0000000", "101", _srlw, "rs1[31:0] >> rs2[4:0], logical, sign-extended", _W, "4.2.2")
alu("sraw", "0100000", "101", _sraw, "rs1[31:0] >> rs2[4:0], arithmetic", _W, "4.2.2")

alu_immediate("addi",  "imm[11:0]",         "000", lambda a, b: a + b,            "rs1 + imm")
alu_immediate("slti",  "imm[11:0]",         "010", lambda a, b: flag(a.lts(b)),   "1 if rs1 < imm, signed, else 0")
alu_immediate("sltiu", "imm[11:0]",         "011", lambda a, b: flag(a.ltu(b)),   "1 if rs1 < imm, unsigned, else 0")
alu_immediate("xori",  "imm[11:0]",         "100", lambda a, b: a ^ b,            "rs1 ^ imm")
alu_immediate("ori",   "imm[11:0]",         "110", lambda a, b: a | b,            "rs1 | imm")
alu_immediate("andi",  "imm[11:0]",         "111", lambda a, b: a & b,            "rs1 & imm")
alu_immediate("slli",  "000000 shamt[5:0]", "001", lambda a, b: a << b,           "rs1 << shamt",             source="4.2.1")
alu_immediate("srli",  "000000 shamt[5:0]", "101", lambda a, b: a >> b,           "rs1 >> shamt, logical",    source="4.2.1")
alu_immediate("srai",  "010000 shamt[5:0]", "101", lambda a, b: a.sra(b),         "rs1 >> shamt, arithmetic", source="4.2.1")
alu_immediate("addiw", "imm[11:0]",         "000", lambda a, b: (a + b).sext(32), "32 bits of rs1 + imm, sign-extended", _IW, "4.2.1")
alu_immediate("slliw", "0000000 shamt[4:0]", "001", _sllw, "32 bits of rs1 << shamt, sign-extended", _IW, "4.2.1")
alu_immediate("srliw", "0000000 shamt[4:0]", "101", _srlw, "rs1[31:0] >> shamt, logical, sign-extended", _IW, "4.2.1")
alu_immediate("sraiw", "0100000 shamt[4:0]", "101", _sraw, "rs1[31:0] >> shamt, arithmetic", _IW, "4.2.1")
# fmt: on


@insn("fm pred succ rs1 000 rd 0001111", asm="{pred}, {succ}")
def fence(hart: Any) -> None:
    """Order memory accesses; `pause` is one of its hints. (Unpriv. 2.7)"""
    hart.fence()


@insn("imm[11:0] rs1 001 rd 0001111")
def fence_i(hart: Any) -> None:
    """Make earlier stores visible to this hart's instruction fetches. (Unpriv. 5.1)"""
    hart.fence_i()


@insn("000000000000 00000 000 00000 1110011")
def ecall(hart: Any) -> None:
    """Call the environment: cause 8, 9 or 11 by the privilege mode. (Unpriv. 2.8, Priv. 3.3.1)"""
    hart.environment_call()
    raise Trap(hart.priv + 8, 0)


@insn("000000000001 00000 000 00000 1110011")
def ebreak(hart: Any) -> None:
    """Breakpoint trap; tval is the pc. (Unpriv. 2.8, Priv. 3.3.1)"""
    raise Trap(Cause.BREAKPOINT, hart.pc)
