"""Bundles of files: the same bytes for the same files, and nothing but plain files out of one."""

from __future__ import annotations

import io
import random
import tarfile

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tensafe.contracts.errors import IntegrityError
from tensafe.packages.bundle import MAX_FILES, pack_files, unpack_files

names = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}", fullmatch=True)
bundles = st.dictionaries(names, st.binary(max_size=2000), min_size=1, max_size=MAX_FILES)
FILES = {"adapter_config.json": b"{}", "adapter_model.safetensors": bytes(range(256)) * 9}


@given(bundles)
def test_what_is_packed_is_unpacked(files: dict[str, bytes]) -> None:
    assert unpack_files(pack_files(files)) == files


def test_the_order_and_the_time_of_packing_do_not_show() -> None:
    assert pack_files(FILES) == pack_files(dict(reversed(FILES.items())))
    with tarfile.open(fileobj=io.BytesIO(pack_files(FILES))) as tar:
        assert {(info.mtime, info.uid, info.gid, info.uname, info.mode) for info in tar} == {
            (0, 0, 0, "", 0o600)
        }


@pytest.mark.parametrize(
    "name", ["", "a/b", "../a", "/a", ".hidden", "a b", "ä", "a" * 101, "a\0", "-a", "a\n"]
)
def test_other_names_are_refused_both_ways(name: str) -> None:
    with pytest.raises(IntegrityError):
        pack_files({name: b"x"})
    if name and "\0" not in name and len(name) <= 100:
        with pytest.raises(IntegrityError):
            unpack_files(_tar((tarfile.TarInfo(name), b"x")))


def test_too_many_files_are_refused_both_ways() -> None:
    many = {f"f{number}": b"" for number in range(MAX_FILES + 1)}
    with pytest.raises(IntegrityError):
        pack_files(many)
    with pytest.raises(IntegrityError):
        unpack_files(_tar(*((tarfile.TarInfo(name), b"") for name in many)))


@pytest.mark.parametrize(
    "kind",
    [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE, tarfile.CONTTYPE],
)
def test_only_plain_files_come_out(kind: bytes) -> None:
    info = tarfile.TarInfo("a")
    info.type, info.linkname = kind, "/etc/passwd"
    with pytest.raises(IntegrityError):
        unpack_files(_tar((info, b"")))


def test_the_same_name_twice_is_refused() -> None:
    with pytest.raises(IntegrityError):
        unpack_files(_tar((tarfile.TarInfo("a"), b"1"), (tarfile.TarInfo("a"), b"2")))


def test_a_hole_of_a_terabyte_is_not_filled() -> None:
    """A sparse file of a few bytes claims to be large: reading it would fill the memory with zeros."""
    pax = {
        "GNU.sparse.major": "1",
        "GNU.sparse.minor": "0",
        "GNU.sparse.name": "a",
        "GNU.sparse.realsize": str(2**40),
    }
    body = b"1\n%d\n0\n" % 2**40
    info = tarfile.TarInfo("a")
    info.pax_headers = pax
    info.size = 512
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as tar:
        tar.addfile(info, io.BytesIO(body.ljust(512, b"\0")))
    with pytest.raises(IntegrityError):
        unpack_files(buffer.getvalue())


@pytest.mark.parametrize("data", [b"", b"x", b"\0" * 100, b"\x1f\x8b" + b"x" * 600, b"x" * 1024])
def test_what_is_no_bundle_is_refused(data: bytes) -> None:
    with pytest.raises(IntegrityError):
        unpack_files(data)


def test_a_cut_bundle_is_never_taken_for_a_whole_one() -> None:
    whole = pack_files(FILES)
    for length in range(0, len(whole), 101):
        try:
            files = unpack_files(whole[:length])
        except IntegrityError:
            continue
        assert files == FILES, length


@given(st.binary(max_size=1600), st.integers(min_value=0, max_value=3000))
def test_hostile_bytes_raise_only_our_error(noise: bytes, place: int) -> None:
    whole = bytearray(pack_files(FILES))
    whole[place : place + len(noise)] = noise
    try:
        unpack_files(bytes(whole))
    except IntegrityError:
        return


@pytest.mark.parametrize("pax", [{}, {"GNU.sparse.major": "1", "GNU.sparse.minor": "0"}, {"size": "-5"}])
def test_hostile_extended_headers_raise_only_our_error(pax: dict[str, str]) -> None:
    """Bytes of the headers are changed at random and their checksums mended."""
    buffer, dice = io.BytesIO(), random.Random(7)
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as tar:
        info = tarfile.TarInfo("a")
        info.size, info.pax_headers = 900, {**pax, "comment": "c"}
        tar.addfile(info, io.BytesIO(bytes(900)))
    for _ in range(1500):
        data = bytearray(buffer.getvalue())
        for _ in range(dice.randint(1, 6)):
            data[dice.randrange(1536)] = dice.choice([0, 255, 45, 48, 55, dice.randrange(256)])
        for block in (0, 1024):
            header = data[block : block + 512]
            header[148:156] = b" " * 8
            data[block + 148 : block + 156] = b"%06o\0 " % sum(header)
        try:
            unpack_files(bytes(data))
        except IntegrityError:
            continue


def _tar(*files: tuple[tarfile.TarInfo, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for info, data in files:
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()
