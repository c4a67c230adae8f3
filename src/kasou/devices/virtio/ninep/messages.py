"""The messages of 9P2000.L. A table.

A message is a class whose fields stand in the protocol's order; a field's type says how it is
packed (`codec`). Strings are bytes: names of files need not be UTF-8.
"""

import struct
from dataclasses import dataclass
from typing import Annotated, NamedTuple, TypeVar, dataclass_transform

NO_TAG = 0xFFFF
NO_FID = 0xFFFF_FFFF
MAX_WALK = 16
"""Most names in one walk. (MAXWELEM)"""


U8 = Annotated[int, struct.Struct("<B")]
U16 = Annotated[int, struct.Struct("<H")]
U32 = Annotated[int, struct.Struct("<I")]
U64 = Annotated[int, struct.Struct("<Q")]
Text = Annotated[bytes, "text"]
Data = Annotated[bytes, "data"]


class Qid(NamedTuple):
    """The server's identity of a file: `path` is unique, `version` changes when the file does."""

    type: int
    version: int
    path: int


Texts = Annotated[tuple[bytes, ...], "texts"]
Qids = Annotated[tuple[Qid, ...], "qids"]


class Message:
    """Base of the messages."""

    __slots__ = ()


Kind = TypeVar("Kind", bound=type[Message])


@dataclass_transform(frozen_default=True)
def message(kind: Kind) -> Kind:
    """A class of messages: its fields are what it is made of."""
    return dataclass(frozen=True, slots=True)(kind)  # type: ignore[return-value]


class BadMessage(ValueError):
    """Bytes that are no message; `tag` is whom to answer."""

    def __init__(self, tag: int, text: str) -> None:
        super().__init__(text)
        self.tag = tag


@message
class Rlerror(Message):
    """The answer to what failed: a Linux errno."""

    ecode: U32


@message
class Tstatfs(Message):
    """The file system's size."""

    fid: U32


@message
class Rstatfs(Message):
    """The answer to Tstatfs."""

    type: U32
    bsize: U32
    blocks: U64
    bfree: U64
    bavail: U64
    files: U64
    ffree: U64
    fsid: U64
    namelen: U32


@message
class Tlopen(Message):
    """Open the file of `fid`."""

    fid: U32
    flags: U32


@message
class Rlopen(Message):
    """The answer to Tlopen."""

    qid: Qid
    iounit: U32


@message
class Tlcreate(Message):
    """Create a file in the directory of `fid`, and open it there."""

    fid: U32
    name: Text
    flags: U32
    mode: U32
    gid: U32


@message
class Rlcreate(Message):
    """The answer to Tlcreate."""

    qid: Qid
    iounit: U32


@message
class Tsymlink(Message):
    """Make a symbolic link."""

    dfid: U32
    name: Text
    target: Text
    gid: U32


@message
class Rsymlink(Message):
    """The answer to Tsymlink."""

    qid: Qid


@message
class Tmknod(Message):
    """Make a special file."""

    dfid: U32
    name: Text
    mode: U32
    major: U32
    minor: U32
    gid: U32


@message
class Rmknod(Message):
    """The answer to Tmknod."""

    qid: Qid


@message
class Trename(Message):
    """Give the file of `fid` another name."""

    fid: U32
    dfid: U32
    name: Text


@message
class Rrename(Message):
    """The answer to Trename."""


@message
class Treadlink(Message):
    """What a symbolic link holds."""

    fid: U32


@message
class Rreadlink(Message):
    """The answer to Treadlink."""

    target: Text


@message
class Tgetattr(Message):
    """The attributes of a file."""

    fid: U32
    request_mask: U64


@message
class Rgetattr(Message):
    """The answer to Tgetattr."""

    valid: U64
    qid: Qid
    mode: U32
    uid: U32
    gid: U32
    nlink: U64
    rdev: U64
    size: U64
    blksize: U64
    blocks: U64
    atime_sec: U64
    atime_nsec: U64
    mtime_sec: U64
    mtime_nsec: U64
    ctime_sec: U64
    ctime_nsec: U64
    btime_sec: U64
    btime_nsec: U64
    gen: U64
    data_version: U64


@message
class Tsetattr(Message):
    """Change those attributes that `valid` names."""

    fid: U32
    valid: U32
    mode: U32
    uid: U32
    gid: U32
    size: U64
    atime_sec: U64
    atime_nsec: U64
    mtime_sec: U64
    mtime_nsec: U64


@message
class Rsetattr(Message):
    """The answer to Tsetattr."""


@message
class Txattrwalk(Message):
    """Read an extended attribute through `newfid`."""

    fid: U32
    newfid: U32
    name: Text


@message
class Rxattrwalk(Message):
    """The answer to Txattrwalk."""

    size: U64


@message
class Txattrcreate(Message):
    """Write an extended attribute through `fid`."""

    fid: U32
    name: Text
    attr_size: U64
    flags: U32


@message
class Rxattrcreate(Message):
    """The answer to Txattrcreate."""


@message
class Treaddir(Message):
    """Entries of an open directory, from a cookie on."""

    fid: U32
    offset: U64
    count: U32


@message
class Rreaddir(Message):
    """The answer to Treaddir."""

    data: Data


@message
class Tfsync(Message):
    """Bring a file to stable storage."""

    fid: U32
    datasync: U32


@message
class Rfsync(Message):
    """The answer to Tfsync."""


@message
class Tlock(Message):
    """Take or release a lock."""

    fid: U32
    type: U8
    flags: U32
    start: U64
    length: U64
    proc_id: U32
    client_id: Text


@message
class Rlock(Message):
    """The answer to Tlock."""

    status: U8


@message
class Tgetlock(Message):
    """Who would keep a lock from being taken."""

    fid: U32
    type: U8
    start: U64
    length: U64
    proc_id: U32
    client_id: Text


@message
class Rgetlock(Message):
    """The answer to Tgetlock."""

    type: U8
    start: U64
    length: U64
    proc_id: U32
    client_id: Text


@message
class Tlink(Message):
    """Make a hard link to the file of `fid`."""

    dfid: U32
    fid: U32
    name: Text


@message
class Rlink(Message):
    """The answer to Tlink."""


@message
class Tmkdir(Message):
    """Make a directory."""

    dfid: U32
    name: Text
    mode: U32
    gid: U32


@message
class Rmkdir(Message):
    """The answer to Tmkdir."""

    qid: Qid


@message
class Trenameat(Message):
    """Rename by directory and name."""

    olddirfid: U32
    oldname: Text
    newdirfid: U32
    newname: Text


@message
class Rrenameat(Message):
    """The answer to Trenameat."""


@message
class Tunlinkat(Message):
    """Remove by directory and name."""

    dirfid: U32
    name: Text
    flags: U32


@message
class Runlinkat(Message):
    """The answer to Tunlinkat."""


@message
class Tversion(Message):
    """Begin a session."""

    msize: U32
    version: Text


@message
class Rversion(Message):
    """The answer to Tversion."""

    msize: U32
    version: Text


@message
class Tauth(Message):
    """Ask for authentication."""

    afid: U32
    uname: Text
    aname: Text
    n_uname: U32


@message
class Tattach(Message):
    """Get a fid of the root for a user."""

    fid: U32
    afid: U32
    uname: Text
    aname: Text
    n_uname: U32


@message
class Rattach(Message):
    """The answer to Tattach."""

    qid: Qid


@message
class Tflush(Message):
    """Give up a request."""

    oldtag: U16


@message
class Rflush(Message):
    """The answer to Tflush."""


@message
class Twalk(Message):
    """Get a fid of a file below that of `fid`."""

    fid: U32
    newfid: U32
    names: Texts


@message
class Rwalk(Message):
    """The answer to Twalk."""

    qids: Qids


@message
class Tread(Message):
    """Read from an open file."""

    fid: U32
    offset: U64
    count: U32


@message
class Rread(Message):
    """The answer to Tread."""

    data: Data


@message
class Twrite(Message):
    """Write to an open file."""

    fid: U32
    offset: U64
    data: Data


@message
class Rwrite(Message):
    """The answer to Twrite."""

    count: U32


@message
class Tclunk(Message):
    """Give a fid back."""

    fid: U32


@message
class Rclunk(Message):
    """The answer to Tclunk."""


@message
class Tremove(Message):
    """Remove the file of `fid`, and give it back."""

    fid: U32


@message
class Rremove(Message):
    """The answer to Tremove."""


TYPES: dict[int, type[Message]] = {
    7: Rlerror,
    8: Tstatfs,
    9: Rstatfs,
    12: Tlopen,
    13: Rlopen,
    14: Tlcreate,
    15: Rlcreate,
    16: Tsymlink,
    17: Rsymlink,
    18: Tmknod,
    19: Rmknod,
    20: Trename,
    21: Rrename,
    22: Treadlink,
    23: Rreadlink,
    24: Tgetattr,
    25: Rgetattr,
    26: Tsetattr,
    27: Rsetattr,
    30: Txattrwalk,
    31: Rxattrwalk,
    32: Txattrcreate,
    33: Rxattrcreate,
    40: Treaddir,
    41: Rreaddir,
    50: Tfsync,
    51: Rfsync,
    52: Tlock,
    53: Rlock,
    54: Tgetlock,
    55: Rgetlock,
    70: Tlink,
    71: Rlink,
    72: Tmkdir,
    73: Rmkdir,
    74: Trenameat,
    75: Rrenameat,
    76: Tunlinkat,
    77: Runlinkat,
    100: Tversion,
    101: Rversion,
    102: Tauth,
    104: Tattach,
    105: Rattach,
    108: Tflush,
    109: Rflush,
    110: Twalk,
    111: Rwalk,
    116: Tread,
    117: Rread,
    118: Twrite,
    119: Rwrite,
    120: Tclunk,
    121: Rclunk,
    122: Tremove,
    123: Rremove,
}
