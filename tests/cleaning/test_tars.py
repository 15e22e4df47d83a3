"""Tars that are damaged, cut off, joined or compressed: every member is an output, a reject, or passed on."""

import bz2
import gzip
import io
import lzma
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import IO, cast

import numpy as np
import one_process
import pytest

from raypurify.cleaning import reader, writer
from raypurify.cleaning.accounts import Cleaned
from raypurify.cleaning.cleaner import Cleaner, Cleaning, CleaningConfig
from raypurify.cleaning.entries import Entry
from raypurify.cleaning.plan import UnitContent
from raypurify.images import encode_png

LIMITS = reader.Limits(max_pixels=1 << 20)
LONG = "é" * 80 + ".png"


def image(index: int) -> bytes:
    return encode_png(np.random.default_rng(index).integers(0, 255, (12, 10 + index, 3), dtype=np.uint8))


FILES = {
    "0.png": image(0),
    "notes.txt": b"words" * 200,
    "1.png": image(1),
    LONG: image(2),
    "3.png": image(3),
}
LINKS = {
    "hard.txt": (tarfile.LNKTYPE, "notes.txt"),
    "soft.txt": (tarfile.SYMTYPE, "notes.txt"),
    "away.txt": (tarfile.SYMTYPE, "/nowhere"),
    "hard.png": (tarfile.LNKTYPE, "0.png"),
    "soft.png": (tarfile.SYMTYPE, "notes.txt"),
    "hard-to-image.txt": (tarfile.LNKTYPE, "1.png"),
    "soft-to-image.txt": (tarfile.SYMTYPE, "1.png"),
    "hard-to-nothing.txt": (tarfile.LNKTYPE, "nothing"),
}


def tar_of(files: dict[str, bytes], others: dict[str, tuple[bytes, str]] | None = None) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
        for name, (kind, target) in (others or {}).items():
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, target
            tar.addfile(info)
    return out.getvalue()


@dataclass
class Read:
    """What our reader makes of a tar."""

    found: dict[str, reader.Item]
    """By names."""
    damage: list[str]
    """Reasons why the tar itself is a reject."""


def read(path: Path, data: bytes) -> Read:
    path.write_bytes(data)
    entry = Entry(key=path.name, url=str(path), kind="tar", size=len(data), version="", rows=None, output=path.name)
    [segment] = reader.segments(UnitContent(name="0", entries=(entry,)), LIMITS)
    items = list(segment.items)
    assert len({item.id for item in items}) == len(items)
    return Read(
        {item.name: item for item in items if item.id != entry.key},
        [item.reason for item in items if item.id == entry.key],
    )


def members_by_tarfile(data: bytes) -> list[tarfile.TarInfo]:
    """The members that the standard library finds with ``ignore_zeros``, until it fails."""
    found: list[tarfile.TarInfo] = []
    try:
        with tarfile.open(fileobj=io.BytesIO(data), ignore_zeros=True) as tar:
            while (member := tar.next()) is not None:
                found.append(member)
    except (tarfile.TarError, EOFError):
        pass
    return found


def check_content(name: str, item: reader.Item, content: bytes) -> None:
    if item.picture is None:
        assert item.data == content, name
    else:
        assert encode_png(item.picture.pixels) == content, name


def test_a_tar_cut_at_every_block(tmp_path: Path):
    data = tar_of(FILES)
    last = members_by_tarfile(data)[-1]
    end = last.offset_data + -(-last.size // 512) * 512
    for length in range(0, len(data), 512):
        result = read(tmp_path / "a.tar", data[:length])
        assert len(result.damage) == (length <= end), length
        expected = [member.name for member in members_by_tarfile(data[:length])]
        missing = [name for name in expected if name not in result.found]
        assert missing in ([], expected[-1:]), length
        assert not missing or result.damage
        for name, item in result.found.items():
            check_content(name, item, FILES[name])


@pytest.mark.parametrize("blocks", [1, 2, 7])
def test_a_tar_with_a_hole_at_every_block(tmp_path: Path, blocks: int):
    data = tar_of(FILES)
    members = members_by_tarfile(data)
    for begin in range(0, members[-1].offset_data, 512):
        end = begin + 512 * blocks
        holed = data[:begin] + bytes(end - begin) + data[end:]
        result = read(tmp_path / "a.tar", holed)
        assert {member.name for member in members_by_tarfile(holed)} <= set(result.found), begin
        for member in members:
            if member.offset >= end or member.offset_data + member.size <= begin:
                check_content(member.name, result.found[member.name], FILES[member.name])


def unended(data: bytes) -> bytes:
    """A tar without the zeros behind its last member, but for those that fill up its last block."""
    length = len(data.rstrip(b"\0"))
    return data[: -(-length // 512) * 512]


JOINED = {
    "tars": lambda one, two: one + two,
    "tars without an end between": lambda one, two: unended(one) + two,
    "tars with zeros before and between": lambda one, two: bytes(512) + one + bytes(5 * 512) + two,
    "tars with a cut block of zeros behind": lambda one, two: one + two + bytes(100),
    "gzips": lambda one, two: gzip.compress(one) + gzip.compress(two),
    "gzips of one tar": lambda one, two: gzip.compress((one + two)[:3000]) + gzip.compress((one + two)[3000:]),
    "gzips with zeros behind": lambda one, two: gzip.compress(one) + gzip.compress(two) + bytes(100),
    "bzip2s": lambda one, two: bz2.compress(one) + bz2.compress(two),
    "xzs": lambda one, two: lzma.compress(one) + lzma.compress(two),
}


@pytest.mark.parametrize("how", JOINED)
def test_joined_tars(tmp_path: Path, how: str):
    names = list(FILES)
    one, two = (tar_of({name: FILES[name] for name in half}) for half in (names[:2], names[2:]))
    result = read(tmp_path / "a.tar.gz", JOINED[how](one, two))
    assert result.damage == []
    assert list(result.found) == names
    for name, item in result.found.items():
        check_content(name, item, FILES[name])


def test_a_tar_that_begins_with_a_name_as_bzip2_does_is_a_tar(tmp_path: Path):
    files = {"BZh9.png": image(0), "1.png": image(1)}
    result = read(tmp_path / "a.tar", tar_of(files))
    assert (list(result.found), result.damage) == (list(files), [])


def test_members_of_one_name_have_ids_of_their_own_though_others_are_named_as_these(tmp_path: Path):
    names = ["a.png", "a.png~2", "a.png", "a.png", "a.png~3", "a.png~4", "a.png~3~2"]
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name in names:
            info = tarfile.TarInfo(name)
            info.type = tarfile.REGTYPE if name == "a.png" else tarfile.FIFOTYPE
            tar.addfile(info)
    (tmp_path / "a.tar").write_bytes(out.getvalue())
    ids = [row["id"].removeprefix("a.tar#") for row in clean(tmp_path / "a.tar", tmp_path / "out").rejects]
    assert ids == ["a.png", "a.png~2", "a.png~3", "a.png~4", "a.png~3~2", "a.png~4~2", "a.png~3~2~2"]


def test_images_of_one_name_have_names_of_bounded_length_in_the_cleaned_tar(tmp_path: Path):
    sink = writer.TarSink(str(tmp_path / "a.tar"), "png", lambda: None)
    entry = Entry(key="a.tar", url="", kind="tar", size=-1, version="")
    for position in range(100):
        sink.put(reader.Item(entry=entry, id=str(position), name="a.png"), b"x")
    sink.close()
    with tarfile.open(tmp_path / "a.tar") as tar:
        names = tar.getnames()
    assert names == ["a.png", "a.png.png", *(f"a.png~{number}.png" for number in range(2, 100))]


def hostile(path: Path) -> None:
    """A tar of two images between texts, whose names lead out of the folder, and of a hard link to one of these."""
    image = encode_png(np.zeros((4, 4, 3), np.uint8))
    with tarfile.open(path, "w") as tar:
        for name, data in (
            ("/etc/b.txt", b"text"),
            ("../../a.png", image),
            ("C:\\e.txt", b"text"),
            ("é/..\0", b"text"),
            ("./c/../d..png", image),
        ):
            header = tarfile.TarInfo(name)
            header.size = len(data)
            tar.addfile(header, io.BytesIO(data))
        link = tarfile.TarInfo("link.txt")
        link.type, link.linkname = tarfile.LNKTYPE, "/etc/b.txt"
        tar.addfile(link)


def test_no_name_in_a_cleaned_tar_leads_out_of_its_folder(tmp_path: Path):
    (tmp_path / "in").mkdir()
    hostile(tmp_path / "in/a.tar")
    output = str(tmp_path / "out")
    one_process.clean(CleaningConfig(input=str(tmp_path / "in"), purifier="identity"), output)
    with tarfile.open(tmp_path / "out/images/a.tar") as tar:
        images = ["%2E%2E/%2E%2E/a.png", "./c/%2E%2E/d..png"]
        assert tar.getnames() == ["%2Fetc/b.txt", images[0], "C%3A%5Ce.txt", "é/..%00", images[1], "link.txt"]
        rows = one_process.rows_of(output, "manifest")
        assert [tar.getnames()[row["row"]] for row in rows] == images
        tar.extractall(tmp_path / "unpacked", filter="data")
    assert (tmp_path / "unpacked/link.txt").read_bytes() == b"text"


def test_a_shard_of_tars_holds_images_only(tmp_path: Path):
    (tmp_path / "in").mkdir()
    hostile(tmp_path / "in/a.tar")
    output = str(tmp_path / "out")
    one_process.clean(CleaningConfig(input=str(tmp_path / "in"), purifier="identity", shards="webdataset"), output)
    (shard,) = (tmp_path / "out/images").rglob("*.tar")
    with tarfile.open(shard) as tar:
        assert tar.getnames() == ["%2E%2E/%2E%2E/a.png", "./c/%2E%2E/d..png"]


@pytest.mark.parametrize("behind", [b"x", b"x" * 512, bytes(512) + b"x" * 5000])
def test_what_is_behind_the_end_and_no_zeros_rejects_the_tar(tmp_path: Path, behind: bytes):
    data = tar_of(FILES)
    result = read(tmp_path / "a.tar", data + behind)
    assert list(result.found) == list(FILES)
    at = len(data) + behind.index(b"x")
    assert result.damage == [f"the tar is damaged: what begins at its byte {at} is of no member"]


def test_an_empty_tar_is_empty_and_one_of_zeros_is_a_reject(tmp_path: Path):
    assert read(tmp_path / "a.tar", tar_of({})) == Read({}, [])
    result = read(tmp_path / "a.tar", bytes(20480))
    assert result == Read({}, ["the tar is damaged: all of its 20480 bytes are zeros"])
    result = read(tmp_path / "a.tar", b"<html>" * 4096)
    assert result == Read({}, ["the tar is damaged: what begins at its byte 0 is of no member"])


@pytest.mark.parametrize(
    ("kind", "size", "reason"),
    [
        (tarfile.REGTYPE, 1 << 62, "unexpected end of data"),
        (tarfile.REGTYPE, -(1 << 62), "a header points backwards"),
        (tarfile.GNUTYPE_LONGNAME, 1 << 62, f"a header has {1 << 62} bytes; at most {1 << 30} are read"),
    ],
)
def test_a_header_of_an_impossible_size_ends_the_tar_and_not_the_run(
    tmp_path: Path, kind: bytes, size: int, reason: str
):
    header = tarfile.TarInfo("1.png")
    header.type, header.size = kind, size
    data = tar_of({"0.png": FILES["0.png"]})[: -2 * 512] + header.tobuf(tarfile.GNU_FORMAT) + tar_of({"2.png": b""})
    result = read(tmp_path / "a.tar", data)
    assert next(iter(result.found)) == "0.png"
    assert result.damage == [f"the tar can't be read to its end: {reason}"]


def test_a_gzip_that_is_cut_off_gives_what_comes_before(tmp_path: Path):
    # Noise, so that the packed bytes are as many as the members'.
    packed = gzip.compress(tar_of({f"{index}.png": image(index) for index in range(40)}))
    result = read(tmp_path / "a.tar.gz", packed[: len(packed) // 2])
    assert 20 < len(result.found) < 30
    [reason] = result.damage
    assert "the tar can't be read to its end" in reason


def clean(path: Path, output: Path) -> Cleaned:
    """Clean a tar alone, with the identity."""
    entry = Entry(
        key=path.name, url=str(path), kind="tar", size=path.stat().st_size, version="", rows=None, output="a.tar"
    )
    config = CleaningConfig(input=str(path), purifier="identity")
    cleaner = Cleaner(Cleaning.load(config, str(output)), "cpu", batch=8, threads=1)
    return cleaner(UnitContent(name="0", entries=(entry,)))


def test_every_member_of_every_kind_is_an_output_a_reject_or_passed_on(tmp_path: Path):
    others = {**LINKS, "folder": (tarfile.DIRTYPE, ""), "pipe": (tarfile.FIFOTYPE, "")}
    (tmp_path / "a.tar").write_bytes(tar_of(FILES, others))
    done = clean(tmp_path / "a.tar", tmp_path / "out")
    with tarfile.open(tmp_path / "out" / "images" / "a.tar") as tar:
        written = {member.name: member for member in tar}
        assert cast(IO[bytes], tar.extractfile("hard.txt")).read() == FILES["notes.txt"]
    rejects = {row["id"].removeprefix("a.tar#"): row["reason"] for row in done.rejects}
    assert sorted([*written, *rejects]) == sorted([*FILES, *others])
    assert {name: (member.type, member.linkname) for name, member in written.items() if not member.isreg()} == {
        **{name: LINKS[name] for name in ("hard.txt", "soft.txt", "away.txt")},
        "folder": (tarfile.DIRTYPE, ""),
    }
    target = "links in a tar are not followed"
    assert rejects == {
        "hard.png": f"is a link to 0.png; {target}",
        "soft.png": f"is a link to notes.txt; {target}",
        "hard-to-image.txt": f"is a link to 1.png; {target}",
        "soft-to-image.txt": f"is a link to 1.png; {target}",
        "hard-to-nothing.txt": "is a link to nothing, which is not in the tar",
        "pipe": "is no file, folder or link, but of the type b'6'",
    }


def test_a_tar_of_another_size_than_it_was_listed_with_is_a_reject(tmp_path: Path):
    (tmp_path / "a.tar").write_bytes(tar_of(FILES))
    entry = Entry(key="a.tar", url=str(tmp_path / "a.tar"), kind="tar", size=512, version="", rows=None, output="a.tar")
    [segment] = reader.segments(UnitContent(name="0", entries=(entry,)), LIMITS)
    [item] = segment.items
    size = len(tar_of(FILES))
    assert (item.id, item.reason) == (
        "a.tar",
        f"changed since it was listed: 512 bytes then, {size} now; --update takes it up",
    )
