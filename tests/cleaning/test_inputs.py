"""Listing of inputs: real folders, a real S3 server, a real web server."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from servers import serving

from raypurify import storage
from raypurify.cleaning.entries import Entry
from raypurify.cleaning.folders import Selection
from raypurify.cleaning.inputs import check_apart, listed
from raypurify.data.base import DataError
from raypurify.storage import retries
from raypurify.storage.bounded import concurrently, ordered
from raypurify.storage.published import short_hash

NASTY = [
    "a.png",
    "a/b.png",
    "a-b.png",
    "a/b/c.PNG",
    "a.b/c.png",
    "A.Jpg",
    "+.png",
    "_DSC0001.JPG",
    "ü.png",
    "\ue000.png",
    "\U00010000.png",
    "h#a.png",
    "q?a=1.png",
    "p%20.png",
    "[a]*.png",
    "dots./x.png",
    "space /x.png",
    "back\\slash.png",
    "tab\t.png",
    "&amp;<>.webp",
    "deep/" * 40 + "x.bmp",
]
ONLY_S3 = ["u/../../x.png", "//x.png", "./y.png", "a//b.png", "a::b.png", "k" * 1016 + ".png"]
ONLY_LOCAL = ["new\nline.png"]
NO_INPUTS = [
    ".hidden.png",
    ".folder/x.png",
    "_temporary/x.png",
    "_metadata.parquet",
    "notes.txt",
    "b/Notes.TXT",
    "Makefile",
]


@pytest.fixture
def output(tmp_path: Path) -> str:
    return str(tmp_path / "output")


def write(root: Path, keys: list[str]) -> Path:
    for key in keys:
        path = root / key
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(key.encode())
    return root


def put(url: str, keys: list[str]) -> str:
    fs, path = storage.filesystem(url)
    fs.pipe({f"{path}/{key}": key.encode() for key in keys})
    return url


def keys_of(entries: Iterator[Entry]) -> list[str]:
    return [entry.key for entry in entries]


def in_order(keys: list[str]) -> list[str]:
    return sorted(keys, key=str.encode)


@pytest.fixture
def web(tmp_path: Path) -> Iterator[tuple[Path, str]]:
    """A folder, and where it is on a web server."""
    root = tmp_path / "web"
    root.mkdir()
    with serving(root) as port:
        yield root, f"http://127.0.0.1:{port}"


def test_local_folder_and_s3_list_the_same_keys_in_the_same_order(tmp_path: Path, s3: str, output: str):
    local = write(tmp_path / "in", [*NASTY, *NO_INPUTS])
    remote = put(f"{s3}/nasty", [*NASTY, *NO_INPUTS])
    skipped: Counter[str] = Counter()
    found = list(listed(str(local), output=output, skipped=skipped))
    assert [entry.key for entry in found] == in_order(NASTY)
    assert keys_of(listed(remote, output=output)) == in_order(NASTY)
    assert skipped == {".txt": 2, "no extension": 1, "hidden file(s)": 2, "hidden folder(s)": 2}
    of_s3: Counter[str] = Counter()
    list(listed(f"{s3}/nasty", output=output, skipped=of_s3))
    assert of_s3 == skipped
    assert all(entry.size == len(entry.key.encode()) and entry.version and entry.kind == "image" for entry in found)


def test_every_listed_url_opens_literally(tmp_path: Path, s3: str, output: str):
    local = write(tmp_path / "in", [*NASTY, *ONLY_LOCAL])
    remote = put(f"{s3}/literal", [*NASTY, *ONLY_S3])
    for place, keys in ((str(local), [*NASTY, *ONLY_LOCAL]), (remote, [*NASTY, *ONLY_S3])):
        found = list(listed(place, output=output))
        assert [entry.key for entry in found] == in_order(keys)
        assert [storage.read_bytes(entry.url) for entry in found] == [entry.key.encode() for entry in found]


def test_pages_of_s3_are_drawn_as_they_are_used(many_objects: tuple[str, list[str]], output: str):
    url, keys = many_objects
    before = retries.counts()

    def asked() -> int:
        """Requests but for those that a busy server made the client repeat."""
        made = retries.since(before)
        return made["requests"] - made["retries"]

    entries = listed(url, output=output)
    assert next(entries).key == min(keys, key=str.encode)
    # Up to two for what is there, a page, and the next one.
    assert asked() <= 4
    assert keys_of(entries) == in_order(keys)[1:]
    assert 3 <= asked() <= 5


def test_markers_of_folders_are_no_files(s3: str, output: str):
    fs, _ = storage.filesystem(f"{s3}/marked")
    for key in ("", "a/", "a/x.png"):
        fs.call_s3("put_object", Bucket="runs", Key=f"marked/{key}", Body=b"")
    skipped: Counter[str] = Counter()
    assert keys_of(listed(f"{s3}/marked", output=output, skipped=skipped)) == ["a/x.png"]
    assert keys_of(listed(f"{s3}/marked/", output=output, skipped=skipped)) == ["a/x.png"]
    assert not skipped


def test_kinds(tmp_path: Path, output: str):
    write(tmp_path / "in", ["a.TIFF", "b.parquet", "c.tar", "d.tar.gz", "e.gz", "f.jpeg"])
    skipped: Counter[str] = Counter()
    found = {entry.key: entry.kind for entry in listed(str(tmp_path / "in"), output=output, skipped=skipped)}
    assert found == {"a.TIFF": "image", "b.parquet": "parquet", "c.tar": "tar", "d.tar.gz": "tar", "f.jpeg": "image"}
    assert skipped == {".gz": 1}


def test_extensions_are_counted_in_bounded_memory(tmp_path: Path, output: str):
    write(tmp_path / "in", ["a.png", *(f"x.e{number}" for number in range(150))])
    skipped: Counter[str] = Counter()
    list(listed(str(tmp_path / "in"), output=output, skipped=skipped))
    assert sum(skipped.values()) == 150
    assert len(skipped) == 101


def test_symbolic_links(tmp_path: Path, output: str):
    root = write(tmp_path / "in", ["a/x.png", "b/y.png"])
    outside = write(tmp_path / "elsewhere", ["z.png"])
    (root / "a" / "file.png").symlink_to(root / "b" / "y.png")
    (root / "a" / "up").symlink_to(root)
    (root / "b" / "a").symlink_to(root / "a")
    (root / "out").symlink_to(outside)
    (root / "broken.png").symlink_to(root / "nothing")
    (root / "itself.png").symlink_to(root / "itself.png")
    found = {entry.key: entry for entry in listed(str(root), output=output)}
    assert in_order(list(found)) == list(found)
    assert set(found) == {
        *("a/x.png", "a/file.png", "b/y.png", "b/a/x.png", "b/a/file.png"),
        *("out/z.png", "broken.png", "itself.png"),
    }
    assert {found["broken.png"].size, found["itself.png"].size} == {-1}


def test_a_link_to_the_output_is_not_followed(tmp_path: Path):
    root = write(tmp_path / "in", ["a.png"])
    output = write(tmp_path / "out", ["images/a.png"])
    (root / "cleaned").symlink_to(output)
    assert keys_of(listed(str(root), output=str(output))) == ["a.png"]
    assert keys_of(listed(str(root), output=str(tmp_path / "other"))) == ["a.png", "cleaned/images/a.png"]


def test_pipes_are_counted_and_names_that_are_no_utf8_can_be_stored(tmp_path: Path, output: str):
    root = write(tmp_path / "in", ["a.png"])
    os.mkfifo(root / "pipe.png")
    with open(os.fsencode(root) + b"/caf\xe9.png", "wb"):
        pass
    skipped: Counter[str] = Counter()
    keys = keys_of(listed(str(root), output=output, skipped=skipped))
    assert keys == ["a.png", "caf\ufffdE9.png"]
    assert skipped == {"pipe(s) or device(s)": 1}
    pa.array(keys, pa.string())


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("*.png", ["a.png"]),
        ("**/*.png", ["a.png", "cats/b.png", "cats/deep/c.png", "dogs/d.png"]),
        ("cats/**/*.png", ["b.png", "deep/c.png"]),
        ("c*/*", ["cats/b.png", "cats/e.jpg"]),
        ("cats/?.[jp]*", ["b.png", "e.jpg"]),
        ("[cd]*/*.png", ["cats/b.png", "dogs/d.png"]),
    ],
)
def test_globs(tmp_path: Path, s3: str, output: str, pattern: str, expected: list[str]):
    keys = ["a.png", "cats/b.png", "cats/deep/c.png", "dogs/d.png", "cats/e.jpg", "cats/.f.png", "cats/g.txt"]
    local, remote = write(tmp_path / "in", keys), put(f"{s3}/globs", keys)
    assert keys_of(listed(f"{local}/{pattern}", output=output)) == expected
    assert keys_of(listed(f"{remote}/{pattern}", output=output)) == expected


def test_a_folder_with_wildcards_in_its_name_is_no_glob(tmp_path: Path, output: str):
    write(tmp_path / "in[1]", ["a.png"])
    assert keys_of(listed(str(tmp_path / "in[1]"), output=output)) == ["a.png"]


@pytest.mark.parametrize(
    ("pattern", "entered", "left_out"),
    [
        ("*.png", [], ["cats"]),
        ("c*/*.png", ["cats"], ["dogs", "cats/deep"]),
        ("c*/**/*.png", ["cats", "cats/deep/deeper"], ["dogs", "dogs/cats", "cats/.hidden"]),
    ],
)
def test_a_glob_does_not_look_into_folders_that_cannot_match(pattern: str, entered: list[str], left_out: list[str]):
    selection = Selection(Counter(), pattern)
    assert all(selection.enters(folder) for folder in entered)
    assert not any(selection.enters(folder) for folder in left_out)


def test_other_stores(web: tuple[Path, str], output: str):
    root, url = web
    keys = ["a b.png", "a/c%20d.png", "ü/é.png", "a/x.jpg"]
    write(root, [*keys, "notes.txt"])
    found = list(listed(f"{url}/", output=output))
    assert [entry.key for entry in found] == in_order(keys)
    assert [storage.read_bytes(entry.url) for entry in found] == [entry.key.encode() for entry in found]
    assert [entry.size for entry in found] == [len(entry.key.encode()) for entry in found]
    assert all(entry.version for entry in found)
    put("memory://listing/in", keys)
    assert keys_of(listed("memory://listing/in", output=output)) == in_order(keys)


def test_one_file(tmp_path: Path, web: tuple[Path, str], s3: str, output: str):
    root, url = web
    write(root, ["x.png"])
    put(f"{s3}/single", ["x.png"])
    for place in (f"{url}/x.png?signed=1", str(root / "x.png"), f"{s3}/single/x.png"):
        (entry,) = listed(place, output=output)
        assert (entry.key, entry.url, entry.kind, entry.size) == ("x.png", place, "image", 5)


def test_what_cannot_be_cleaned_is_said(tmp_path: Path, s3: str, output: str):
    write(tmp_path / "in", ["a.json", "b.json", "c.csv"])
    with pytest.raises(DataError, match=r"nothing to clean.*2 of \.json, 1 of \.csv"):
        list(listed(str(tmp_path / "in"), output=output))
    with pytest.raises(DataError, match="expected a folder, or one of"):
        listed(str(tmp_path / "in" / "a.json"), output=output)
    with pytest.raises(DataError, match="there is no such file or folder"):
        list(listed(str(tmp_path / "nothing"), output=output))
    with pytest.raises(DataError, match="nothing to clean"):
        list(listed(f"{s3}/nothing", output=output))
    with pytest.raises(DataError, match="no such bucket"):
        list(listed("s3://no-such-bucket-here/x", output=output))


def test_a_list_in_text(tmp_path: Path, s3: str, web: tuple[Path, str], output: str):
    root, url = web
    write(root, ["w.png"])
    put(f"{s3}/of-list", ["a.png", "b.png"])
    folder = write(tmp_path / "in", ["x.png", "sub/#y?.png"])
    lines = [
        *("sub/#y?.png", "x.png", "./x.png", "", str(folder / "x.png"), "gone.png", "what?.tar", "no?extension"),
        *(f"{s3}/of-list/b.png", f"{s3}/of-list/a.png", f"{s3}/of-list/gone.png"),
        *(f"{url}/w.png?signature=1", f"{url}/gone", f"{url}/gone?id=1"),
    ]
    path = folder / "list.txt"
    path.write_text("\ufeff" + "\r\n".join(lines) + "\n", encoding="utf-8")
    skipped: Counter[str] = Counter()
    found = {entry.key: entry for entry in listed(str(path), output=output, skipped=skipped)}
    host = url.removeprefix("http://")
    assert {key: entry.size for key, entry in found.items()} == {
        "sub/#y?.png": 11,
        "x.png": 5,
        "gone.png": -1,
        "what?.tar": -1,
        "no?extension": -1,
        "runs/of-list/a.png": 5,
        "runs/of-list/b.png": 5,
        "runs/of-list/gone.png": -1,
        f"{host}/w.png": 5,
        f"{host}/gone": -1,
        f"{host}/gone~{short_hash('id=1')}": -1,
    }
    assert list(found) == in_order(list(found))
    assert skipped == {"duplicate": 2}
    assert [found[key].kind for key in ("what?.tar", "no?extension")] == ["tar", "image"]
    assert storage.read_bytes(found["sub/#y?.png"].url) == b"sub/#y?.png"
    assert all(entry.version for entry in found.values() if entry.size >= 0)


def test_lists_in_tables(tmp_path: Path, output: str):
    folder = write(tmp_path / "in", ["x.png", "y,z.png"])
    (folder / "list.csv").write_text('label,url\n1,x.png\n2,"y,z.png"\n')
    (folder / "list.tsv").write_text("url\tlabel\nx.png\t1\ny,z.png\t2\n")
    pq.write_table(pa.table({"url": ["x.png", "y,z.png"], "label": [1, 2]}), folder / "list.parquet")
    for name in ("list.csv", "list.tsv", "list.parquet"):
        assert keys_of(listed(str(folder / name), output=output)) == ["x.png", "y,z.png"]


def test_a_parquet_file_of_images_is_no_list(tmp_path: Path, output: str):
    pq.write_table(pa.table({"url": ["x.png"], "image": [b"x"]}), tmp_path / "images.parquet")
    (tmp_path / "broken.parquet").write_bytes(b"PAR1" * 10)
    for name in ("images.parquet", "broken.parquet"):
        (entry,) = listed(str(tmp_path / name), output=output)
        assert (entry.key, entry.kind) == (name, "parquet")


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("", "an empty list"),
        ("memory://b/x.png\ns3://b/x.png", "have one key, 'b/x.png'"),
        ("a.png\noutput/images/x.png", "inside the output"),
        ("nosuch://b/x.png", "nosuch"),
        (b"\xff\xfe", "expected UTF-8"),
    ],
)
def test_lists_that_are_refused(tmp_path: Path, s3: str, lines: str | bytes, message: str):
    path = tmp_path / "list.txt"
    path.write_bytes(lines if isinstance(lines, bytes) else lines.encode())
    with pytest.raises(ValueError, match=message):
        list(listed(str(path), output=str(tmp_path / "output")))


def test_remote_lists_that_are_refused(s3: str, output: str):
    storage.write_bytes(f"{s3}/lists/list.txt", b"/etc/x.png\n")
    with pytest.raises(DataError, match="a path on a disk"):
        list(listed(f"{s3}/lists/list.txt", output=output))
    storage.write_bytes(f"{s3}/lists/csv.csv", b"name\nx\n")
    with pytest.raises(DataError, match="expected a column 'url', got \\['name'\\]"):
        list(listed(f"{s3}/lists/csv.csv", output=output))


@pytest.mark.parametrize(
    ("url", "output"),
    [
        ("in", "in"),
        ("in", "in/clean"),
        ("in/deep", "in"),
        ("in", "link/clean"),
        ("in/../in", "in/clean"),
        ("in/*.png", "in/clean"),
        ("s3://runs/x", "s3://runs/x/clean"),
        ("s3://runs", "s3://runs/clean"),
        ("s3://runs/x/", "s3a://runs/x"),
        ("s3://runs/x/**/*.png", "s3://runs/x"),
    ],
)
def test_places_that_are_not_apart(tmp_path: Path, s3: str, monkeypatch: pytest.MonkeyPatch, url: str, output: str):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "in", ["a.png"])
    (tmp_path / "link").symlink_to(tmp_path / "in")
    with pytest.raises(ValueError, match="is inside the"):
        check_apart(url, output)
    with pytest.raises(ValueError, match="is inside the"):
        listed(url, output=output)


def test_places_that_are_apart(tmp_path: Path, s3: str):
    check_apart("s3://runs/x", "s3://runs/x-y")
    check_apart("s3://runs/x", "s3://other/x")
    check_apart(str(tmp_path / "x"), "s3://runs/x")
    check_apart(str(tmp_path / "x"), str(tmp_path / "x-y"))
    check_apart(str(tmp_path / "x" / "list.txt"), str(tmp_path / "x" / "clean"))


def test_sorting_by_runs():
    records = [(f"{number * 7919 % 1000:03d}\n", number, None) for number in range(1000)]
    for run in (7, 999, 1000, 1001):
        assert list(ordered(records, in_memory=run)) == sorted(records)


def test_concurrent_results_come_in_order_and_a_little_ahead():
    drawn = []

    def items() -> Iterator[int]:
        for number in range(100):
            drawn.append(number)
            yield number

    results = concurrently(lambda number: number * 2, items(), at_once=2, when=lambda number: number % 3 == 0)
    assert next(results) == (0, 0)
    assert len(drawn) < 20
    assert list(results) == [(number, number * 2 if number % 3 == 0 else None) for number in range(1, 100)]
