"""Zicond: integer conditional operations. (Unpriv. "Zicond")"""

from kasou.isa.rv64.i import alu
from kasou.isa.word import select

_X, _SECTION = "0110011", '"Zicond", Instructions'
# fmt: off
alu("czero.eqz", "0000111", "101", lambda a, b: select(b == 0, 0, a), "0 if rs2 is 0, else rs1", _X, _SECTION)
alu("czero.nez", "0000111", "111", lambda a, b: select(b == 0, a, 0), "rs1 if rs2 is 0, else 0", _X, _SECTION)
# fmt: on
