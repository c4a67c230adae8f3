from hypothesis import given
from hypothesis import strategies as st

from kasou.errors import ConfigError
from kasou.storage.qcow2.create import layout
from kasou.storage.qcow2.header import parse

GIB = 1 << 30


@given(
    sectors=st.integers(0, 128 * GIB // 512),
    cluster_bits=st.integers(9, 21),
    refcount_order=st.integers(0, 6),
    version=st.sampled_from((2, 3)),
    backing=st.none() | st.sampled_from(("base", "../d/ä.raw", "/x" * 100)),
    lazy=st.booleans(),
)
def test_what_is_emitted_is_parsed(
    sectors: int,
    cluster_bits: int,
    refcount_order: int,
    version: int,
    backing: str | None,
    lazy: bool,
) -> None:
    header = layout(
        sectors * 512,
        backing=backing,
        backing_format="raw" if backing else None,
        cluster_size=1 << cluster_bits,
        refcount_bits=16 if version == 2 else 1 << refcount_order,
        version=version,
        lazy_refcounts=lazy and version == 3,
    )
    data = header.emit()
    assert len(data) <= 1 << cluster_bits
    length = header.l1_table_offset + header.l1_size * 8
    assert parse(data, "image", length) == header


@given(st.binary(max_size=300), st.integers(0, 1 << 40))
def test_any_bytes(data: bytes, length: int) -> None:
    for magic in (b"", b"QFI\xfb\0\0\0\x03", b"QFI\xfb\0\0\0\x02"):
        try:
            parse(magic + data, "image", length)
        except ConfigError as error:
            assert str(error).startswith("image: ")
