"""Plans: frozen, cut off, updated, on a real disk and a real S3 server."""

from __future__ import annotations

import os
import random
import tracemalloc
from collections import Counter
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raypurify import storage
from raypurify.cleaning import accounts, plan, planner
from raypurify.cleaning.entries import Entry, kind_of
from raypurify.cleaning.inputs import listed
from raypurify.cleaning.names import Output, UniqueNames, folded, output_name
from raypurify.cleaning.plan import Counts, UnitContent
from raypurify.cleaning.planner import Sizes
from raypurify.data import files
from raypurify.runs import schema
from raypurify.storage.bounded import Digests


def image(key: str, *, size: int = 10, version: str = "1") -> Entry:
    return Entry(key=key, url=f"/in/{key}", kind=kind_of(key) or "image", size=size, version=version)


def images(*keys: str) -> list[Entry]:
    return [image(key) for key in sorted(keys)]


def units_of(output: str) -> list[UnitContent]:
    planned = sorted(plan.units(output), key=lambda unit: unit.name)
    return [unit.read() for unit in planned]


def entries(output: str) -> list[Entry]:
    return [entry for unit in units_of(output) for entry in unit.entries]


def replaced_entries(output: str, number: int) -> list[tuple[Entry, bool]]:
    return list(plan.generations(output)[number].replaced())


def total(output: str) -> Counts:
    """What is planned: the units of all generations, and the inputs as the latest of each knows them."""
    names = [field.name for field in fields(Counts)]
    marks = [generation.mark for generation in plan.generations(output)]
    return Counts(**{name: sum(mark["counts"][name] - mark["replaced"][name] for mark in marks) for name in names})


def outputs(output: str) -> dict[str, str]:
    return {entry.key: entry.output for entry in entries(output)}


def write_parquet(path: Path, rows: int, *, group: int = 1000) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"image": [os.urandom(50) for _ in range(rows)]}), path, row_group_size=group)
    return path


def test_a_plan_is_frozen_once(tmp_path: Path):
    output = str(tmp_path)
    assert len(plan.generations(output)) == 0
    with pytest.raises(ValueError, match="there is no plan"):
        list(plan.units(output))
    with pytest.raises(ValueError, match="there is no plan"):
        accounts.add_up(output)
    keys = [f"{number:04d}.jpg" for number in range(1203)]
    counts = planner.freeze(output, images(*keys), extension="png", skipped={".txt": 2})
    assert counts == Counts(units=3, files=1203, images=1203, size=12030)
    assert total(output) == counts
    assert plan.generations(output)[0].mark["skipped"] == {".txt": 2}
    assert len(plan.generations(output)) == 1

    def never() -> Iterator[Entry]:
        raise AssertionError("listed again")
        yield

    assert planner.freeze(output, never(), extension="png") == counts
    units = list(units_of(output))
    assert [(unit.name, len(unit.entries)) for unit in units] == [
        *(("000-000000", 500), ("000-000001", 500), ("000-000002", 203)),
    ]
    assert [entry.key for unit in units for entry in unit.entries] == keys
    first = units[0].entries[0]
    assert first == Entry(
        key="0000.jpg", url="/in/0000.jpg", kind="image", size=10, version="1", rows=1, output="0000.png"
    )


def test_units_are_bounded_in_bytes_and_parts_in_rows(tmp_path: Path):
    output = str(tmp_path)
    listing = [image(f"{number:03d}.png", size=40) for number in range(20)] + [image("x.png", size=1000)]
    planner.freeze(output, listing, extension="png", sizes=Sizes(unit_bytes=100, part_rows=4))
    assert [len(unit.entries) for unit in units_of(output)] == [2] * 10 + [1]
    parts = storage.list_files(f"{output}/plan", ".parquet")
    assert [pq.read_metadata(part).num_rows for part in parts] == [4] * 5 + [1]
    assert storage.read_table(parts[0]).schema == schema.PLAN


def test_the_same_listing_gives_the_same_bytes_on_a_disk_and_on_s3(tmp_path: Path, s3: str):
    listing = images(*(f"{number % 3}/{number}.jpg" for number in range(100)), "1/4.png")
    for output in (str(tmp_path / "a"), str(tmp_path / "b"), f"{s3}/plans"):
        planner.freeze(output, listing, extension="png", sizes=Sizes(unit_entries=30, part_rows=40))
    found = [
        [storage.read_bytes(url) for url in storage.list_files(f"{output}/plan")]
        for output in (str(tmp_path / "a"), str(tmp_path / "b"), f"{s3}/plans")
    ]
    assert len(found[0]) == 3
    assert found[0] == found[1] == found[2]


def test_a_plan_that_was_cut_off_is_frozen_anew(tmp_path: Path):
    output = str(tmp_path)

    def cut_off() -> Iterator[Entry]:
        yield from images("a.png", "b.png")
        raise ConnectionResetError("the listing was cut off")

    with pytest.raises(ConnectionResetError):
        planner.freeze(output, cut_off(), extension="png")
    assert len(plan.generations(output)) == 0

    planner.freeze(output, images("a.png", "b.png", "c.png"), extension="png", sizes=Sizes(unit_entries=1, part_rows=1))
    # As a run leaves it that is killed while it writes: all parts but the last, and no mark.
    storage.remove(f"{output}/plan/generation-000/_SUCCESS")
    storage.remove(f"{output}/plan/generation-000/part-00002.parquet")
    assert len(plan.generations(output)) == 0
    planner.freeze(output, images("d.png"), extension="png")
    assert outputs(output) == {"d.png": "d.png"}
    assert len(storage.list_files(f"{output}/plan", ".parquet")) == 1


def test_listings_must_be_in_order_and_not_empty(tmp_path: Path):
    with pytest.raises(ValueError, match=r"'a\.png' came after 'b.png'"):
        planner.freeze(str(tmp_path), [image("b.png"), image("a.png")], extension="png")
    with pytest.raises(ValueError, match="each key once"):
        planner.freeze(str(tmp_path), [image("a.png"), image("a.png")], extension="png")
    with pytest.raises(ValueError, match="nothing to plan"):
        planner.freeze(str(tmp_path), [], extension="png")
    assert len(plan.generations(str(tmp_path))) == 0


@pytest.mark.parametrize("name", ["unit_entries", "unit_bytes", "part_rows", "sorted_rows"])
def test_sizes_are_positive(name: str):
    with pytest.raises(ValueError, match=f"{name} must be at least 1; got 0"):
        Sizes(**{name: 0})


def test_limit(tmp_path: Path):
    write_parquet(tmp_path / "in" / "b.parquet", 30)
    for key in ("a.png", "c.png", "d.png"):
        (tmp_path / "in" / key).write_bytes(b"x")
    output = str(tmp_path / "output")
    counts = planner.freeze(
        output, listed(str(tmp_path / "in"), output=output), extension="png", limit=3, sizes=Sizes(unit_entries=15)
    )
    assert [(entry.key, entry.first) for entry in entries(output)] == [
        ("b.parquet", 0),
        ("b.parquet", 15),
        ("a.png", 0),
    ]
    assert counts.images == 31


@pytest.mark.parametrize(
    ("rows", "group", "expected"),
    [
        (0, 10, [(0, 0)]),
        (10, 100, [(0, 10)]),
        (100, 100, [(0, 100)]),
        (350, 350, [(0, 87), (87, 88), (175, 87), (262, 88)]),
        (900, 900, [(start, 100, start in (100, 300, 500, 700)) for start in range(0, 900, 100)]),
        (250, 50, [(0, 100), (100, 100), (200, 50)]),
        (250, 70, [(0, 70), (70, 70), (140, 70), (210, 40)]),
        (300, 150, [(0, 75), (75, 75), (150, 75), (225, 75)]),
    ],
)
def test_runs_of_parquet_files(tmp_path: Path, rows: int, group: int, expected: list[tuple[int, int]]):
    path = write_parquet(tmp_path / "a.parquet", rows, group=group)
    for size in (path.stat().st_size, -1):
        assert planner.row_ranges(str(path), size, rows=100, most=1 << 30) == [
            planner.RowRange(*run) for run in expected
        ]


def test_runs_are_bounded_in_bytes(tmp_path: Path):
    path = write_parquet(tmp_path / "a.parquet", 100)
    runs = planner.row_ranges(str(path), path.stat().st_size, rows=100, most=2000)
    assert sum(run.rows for run in runs) == 100
    assert max(run.rows for run in runs) <= 40
    assert len(planner.row_ranges(str(path), path.stat().st_size, rows=100, most=1)) == 100


def test_a_long_footer_is_read_whole(tmp_path: Path, s3: str):
    table = pa.table({"image": [b"x"], **{f"column_{'y' * 50}_{number}": [number] for number in range(1500)}})
    pq.write_table(table, tmp_path / "wide.parquet")
    data = (tmp_path / "wide.parquet").read_bytes()
    assert int.from_bytes(data[-8:-4], "little") > files.TAIL
    storage.write_bytes(f"{s3}/wide.parquet", data)
    assert planner.row_ranges(f"{s3}/wide.parquet", len(data), rows=10, most=1 << 30) == planner.ONE_OUTPUT
    footer = files.parquet_footer(f"{s3}/wide.parquet", len(data))
    assert footer is not None
    assert footer.num_columns == 1501


def test_parquet_files_that_cannot_be_read_are_left_to_their_reader(tmp_path: Path):
    whole = write_parquet(tmp_path / "in" / "whole.parquet", 10)
    data = whole.read_bytes()
    (tmp_path / "in" / "cut.parquet").write_bytes(data[:-20])
    (tmp_path / "in" / "empty.parquet").write_bytes(b"")
    (tmp_path / "in" / "flipped.parquet").write_bytes(data[:-30] + b"\xff" * 20 + data[-10:])
    (tmp_path / "in" / "long.parquet").write_bytes(data[:-8] + b"\xff\xff\xff\x7fPAR1")
    pq.write_table(pa.table({"text": ["a", "b"]}), tmp_path / "in" / "text.parquet")
    (tmp_path / "in" / "gone.parquet").symlink_to(tmp_path / "nothing")
    output = str(tmp_path / "output")
    counts = planner.freeze(output, listed(str(tmp_path / "in"), output=output), extension="png")
    assert {entry.key: entry.rows for entry in entries(output)} == {
        "whole.parquet": 10,
        **dict.fromkeys(("cut.parquet", "empty.parquet", "flipped.parquet", "long.parquet", "text.parquet"), 1),
        "gone.parquet": 1,
    }
    assert (counts.units, counts.images) == (7, 16)


def test_kinds_have_units_of_their_own(tmp_path: Path):
    root = tmp_path / "in"
    write_parquet(root / "d.parquet", 250, group=100)
    write_parquet(root / "e.PARQUET", 5)
    write_parquet(root / "h.parquet", 900)
    for key in ("a.jpg", "b.tar", "c.png", "f.tar.gz", "g.webp"):
        (root / key).write_bytes(b"1234")
    output = str(tmp_path / "output")
    sizes = Sizes(unit_entries=100)
    counts = planner.freeze(output, listed(str(root), output=output), extension="png", sizes=sizes)
    units = [
        [(entry.key, entry.first, entry.rows, entry.output) for entry in unit.entries] for unit in units_of(output)
    ]
    assert units == [
        [("b.tar", 0, None, "b.tar")],
        [("d.parquet", 0, 100, "d-000000000.parquet")],
        [("d.parquet", 100, 100, "d-000000100.parquet")],
        [("d.parquet", 200, 50, "d-000000200.parquet")],
        [("e.PARQUET", 0, 5, "e.parquet")],
        [("f.tar.gz", 0, None, "f.tar")],
        *(
            [("h.parquet", start, 100, f"h-{start:09d}.parquet") for start in starts]
            for starts in ((0, 100), (200, 300), (400, 500), (600, 700), (800,))
        ),
        [("a.jpg", 0, 1, "a.png"), ("c.png", 0, 1, "c.png"), ("g.webp", 0, 1, "g.png")],
    ]
    size = sum(path.stat().st_size for path in root.iterdir())
    assert counts == Counts(units=12, files=8, images=1158, tars=2, size=size)


def test_outputs_mirror_their_inputs(tmp_path: Path):
    planner.freeze(str(tmp_path), images("cats/a.jpg", "b.PNG", "50% [x]#?.jpeg", "ü/é.webp"), extension="png")
    assert outputs(str(tmp_path)) == {
        "cats/a.jpg": "cats/a.png",
        "b.PNG": "b.png",
        "50% [x]#?.jpeg": "50% [x]#?.png",
        "ü/é.webp": "ü/é.png",
    }


def test_inputs_that_would_become_one_output_keep_their_full_names(tmp_path: Path):
    planner.freeze(str(tmp_path), images("a.jpg", "a.png", "b.png", "d/a.png", "A.png"), extension="png")
    assert outputs(str(tmp_path)) == {
        "a.jpg": "a.jpg.png",
        "a.png": "a.png.png",
        "b.png": "b.png",
        "d/a.png": "d/a.png",
        "A.png": "A.png",
    }


def test_full_names_that_are_taken_get_a_hash(tmp_path: Path):
    hashed = output_name("a.jpg", "image", extension="png", level=2)
    keys = ["a.jpg", "a.png", "a.jpg.png", hashed.replace(".png", ".bmp")]
    planner.freeze(str(tmp_path), images(*keys), extension="png")
    found = outputs(str(tmp_path))
    assert found["a.jpg.png"] == "a.jpg.png"
    assert found["a.png"] == "a.png.png"
    assert found[keys[3]] == hashed
    assert found["a.jpg"] == output_name("a.jpg", "image", extension="png", level=3)


def test_where_case_is_not_told_apart_names_differ_in_more():
    keys = sorted(["A.png", "a.png", "b.png", "X/c.png", "x/c.png", "e\u0301.png", "\u00e9.png"])
    outputs: list[Output] = [(key, "image", "") for key in keys]
    names = UniqueNames("png", folds=True)
    for output in outputs:
        names.add(output)
    names.settle(outputs, Digests())
    found = [names.name(output) for output in outputs]
    assert found[keys.index("b.png")] == "b.png"
    assert len({folded(name) for name in found}) == len(keys)


HOSTILE = [
    "../x.png",
    "a/../../x.png",
    "..",
    "../..",
    "/etc/x.png",
    "//x.png",
    "a//x.png",
    "./x.png",
    "a/./x.png",
    "a\nb.png",
    "a\x00b.png",
    "a\rb/\x1b[31m.png",
    "a\u2028b.png",
    "back\\..\\slash.png",
    "dots../x.png",
    "dots.../x.png",
    "space /x.png",
    "a::b.png",
    "zip::s3://x.png",
    "q?versionId=1.png",
    "x.png/y.png",
    "x.PNG/y.png",
    "t.parquet/y.png",
    "~/x.png",
    "~root/x.png",
    "k" * 1020 + ".png",
    "ü" * 510 + ".png",
    ("d" * 250 + "/") * 4 + "x.png",
    "d/" * 510 + ".png",
    "%2E%2E/x.png",
    "%2F/x.png",
    "-rf.png",
    "\ufffdE9.png",
]


def test_hostile_names_stay_in_the_output(tmp_path: Path, s3: str):
    output = str(tmp_path / "output")
    images_folder = os.path.join(output, "images")
    keys = sorted({*HOSTILE, "x.png", "x.jpg", "t.parquet"})
    listing = [image(key) if key != "t.parquet" else image(key, size=0) for key in keys]
    planner.freeze(output, listing, extension="png")
    names = outputs(output)
    assert len(set(names.values())) == len(keys)
    for key, name in names.items():
        path = os.path.normpath(os.path.join(images_folder, name))
        assert path == os.path.join(images_folder, name), key
        assert path.startswith(images_folder + os.sep)
        assert all(len(part.encode()) <= 255 - 34 for part in name.split("/"))
        assert len(name.encode()) <= 800
        # Real stores hold it, and give it back under this very name.
        storage.write_bytes(storage.join(images_folder, name), key.encode())
        storage.write_bytes(storage.join(s3, "hostile", name), key.encode())
    assert len(storage.list_files(images_folder)) == len(keys)
    assert storage.list_files(f"{s3}/hostile") == sorted(f"{s3}/hostile/{name}" for name in names.values())
    for key, name in names.items():
        assert storage.read_bytes(storage.join(images_folder, name)) == key.encode()
        assert storage.read_bytes(storage.join(s3, "hostile", name)) == key.encode()
    assert sorted(os.listdir(tmp_path)) == ["output"]
    assert sorted(os.listdir(output)) == ["images", "plan"]


def test_random_names_never_collide_or_leave_the_output(tmp_path: Path):
    generator = random.Random(0)
    alphabet = ["a", "A", ".", "..", "/", "//", "\\", "~", "%2E", " ", "\n", ".png", ".jpg", ".parquet", "é", "b" * 90]
    keys = sorted(
        {"".join(generator.choices(alphabet, k=generator.randint(1, 8))) + ".png" for _ in range(3000)}
        | {"".join(generator.choices(["a", ".png", ".jpg", "/"], k=generator.randint(1, 6))) for _ in range(500)}
    )
    listing = [Entry(key=key, url="", kind="image", size=1, version="") for key in keys]
    planner.freeze(str(tmp_path), listing, extension="png")
    names = Counter(outputs(str(tmp_path)).values())
    assert len(names) == len(keys)
    folders = {name[:end] for name in names for end, char in enumerate(name) if char == "/"}
    assert not folders & set(names)
    assert not any(part in ("", ".", "..") for name in names for part in name.split("/"))


def test_update_plans_what_is_new_or_changed(tmp_path: Path):
    output = str(tmp_path)
    with pytest.raises(ValueError, match="no plan yet"):
        planner.update(output, images("a.jpg"), extension="png")
    sizes = Sizes(unit_entries=2, part_rows=2)
    planner.freeze(output, images("a.jpg", "b.jpg", "c.png", "d.png", "e.jpg"), extension="png", sizes=sizes)
    before = outputs(output)
    nothing = planner.update(output, images("a.jpg", "b.jpg", "c.png", "d.png", "e.jpg"), extension="png")
    assert nothing == planner.Changes(new=0, changed=0, gone=0)
    assert len(plan.generations(output)) == 1

    # b changed, c is gone, aa and b.png are new; b.png would like the name that b.jpg has.
    today = [*images("a.jpg", "aa.jpg", "b.png", "d.png", "e.jpg"), image("b.jpg", version="2")]
    today.sort(key=lambda entry: entry.key)
    changes = planner.update(output, today, extension="png", sizes=sizes)
    assert changes == planner.Changes(new=2, changed=1, gone=1)
    counts = Counts(units=2, files=3, images=3, size=30)
    assert Counts(**plan.generations(output)[1].mark["counts"]) == counts
    assert {unit.name for unit in units_of(output)} == {
        *(f"000-00000{n}" for n in range(3)),
        "001-000000",
        "001-000001",
    }
    added = [entry for unit in units_of(output) if unit.name.startswith("001") for entry in unit.entries]
    assert {entry.key: entry.output for entry in added} == {
        "aa.jpg": "aa.png",
        "b.jpg": before["b.jpg"],
        "b.png": "b.png.png",
    }
    replaced = replaced_entries(output, 1)
    assert [(entry.key, entry.version, is_stale) for entry, is_stale in replaced] == [("b.jpg", "1", False)]
    assert replaced_entries(output, 0) == []
    assert total(output) == Counts(units=5, files=7, images=7, size=70)

    # The next night: b changed again, c is back as it was.
    today = [entry if entry.key != "b.jpg" else image("b.jpg", version="3") for entry in today]
    today = sorted([*today, image("c.png")], key=lambda entry: entry.key)
    again = planner.update(output, today, extension="png")
    assert (again.new, again.changed, again.gone) == (0, 1, 0)
    assert [(entry.version, is_stale) for entry, is_stale in replaced_entries(output, 2)] == [("2", False)]
    assert total(output) == Counts(units=6, files=7, images=7, size=70)
    planner.update(output, today, extension="png")
    assert len(plan.generations(output)) == 3


def test_an_update_that_was_cut_off_is_not_there(tmp_path: Path):
    output = str(tmp_path)
    planner.freeze(output, images("a.png"), extension="png")

    def cut_off() -> Iterator[Entry]:
        yield image("a.png", version="2")
        yield image("b.png")
        raise ConnectionResetError("the listing was cut off")

    with pytest.raises(ConnectionResetError):
        planner.update(output, cut_off(), extension="png", sizes=Sizes(part_rows=1))
    assert len(plan.generations(output)) == 1
    assert [unit.name for unit in units_of(output)] == ["000-000000"]
    assert storage.list_files(f"{output}/plan", "replaced-00000.parquet")
    changes = planner.update(output, images("a.png", "c.png"), extension="png")
    assert (changes.new, changes.changed) == (1, 0)
    assert len(plan.generations(output)) == 2
    assert replaced_entries(output, 1) == []
    assert not storage.list_files(f"{output}/plan", "replaced-00000.parquet")


def test_update_of_a_parquet_file(tmp_path: Path):
    path, output = tmp_path / "in" / "t.parquet", str(tmp_path / "output")
    sizes = Sizes(unit_entries=100)

    def listing() -> Iterator[Entry]:
        return listed(str(path.parent), output=output)

    write_parquet(path, 80)
    planner.freeze(output, listing(), extension="png", sizes=sizes)
    write_parquet(path, 250, group=100)
    os.utime(path, ns=(1, 1))
    planner.update(output, listing(), extension="png", sizes=sizes)
    added = [(entry.first, entry.rows, entry.output) for entry in entries(output)[1:]]
    # The run that was there keeps its name, so that nothing is left over.
    assert added == [(0, 100, "t.parquet"), (100, 100, "t-000000100.parquet"), (200, 50, "t-000000200.parquet")]
    assert [(entry.rows, is_stale) for entry, is_stale in replaced_entries(output, 1)] == [(80, False)]
    assert total(output).images == 250

    write_parquet(path, 120, group=60)
    os.utime(path, ns=(2, 2))
    planner.update(output, listing(), extension="png", sizes=sizes)
    assert [(entry.output, is_stale) for entry, is_stale in replaced_entries(output, 2)] == [
        ("t.parquet", False),
        ("t-000000100.parquet", True),
        ("t-000000200.parquet", True),
    ]
    assert total(output) == Counts(units=6, files=1, images=120, size=path.stat().st_size)


def test_three_pages_of_objects_of_s3(s3: str, many_objects: tuple[str, list[str]]):
    url, keys = many_objects
    output = f"{s3}/many-clean"
    counts = planner.freeze(
        output, listed(url, output=output), extension="png", sizes=Sizes(unit_entries=100, part_rows=200)
    )
    assert counts == Counts(units=6, files=600, images=600, size=3000)
    assert outputs(output) == {key: key for key in keys}


def test_update_tells_objects_of_s3_apart_by_their_content(s3: str):
    fs, path = storage.filesystem(f"{s3}/nightly")
    output = f"{s3}/nightly-clean"
    fs.pipe({f"{path}/{name}.png": b"12345" for name in "abc"})
    planner.freeze(output, listed(f"{s3}/nightly", output=output), extension="png")
    fs.pipe({f"{path}/a.png": b"12346", f"{path}/b.png": b"12345", f"{path}/d.png": b"1"})
    fs.rm_file(f"{path}/c.png")
    changes = planner.update(output, listed(f"{s3}/nightly", output=output), extension="png")
    assert (changes.new, changes.changed, changes.gone) == (1, 1, 1)
    assert [entry.key for entry, _ in replaced_entries(output, 1)] == ["a.png"]


def peak(count: int, output: str) -> tuple[int, int]:
    """Bytes of memory at the peak of freezing, and of updating, a plan of so many images that all collide."""

    def listing(version: str) -> Iterator[Entry]:
        for number in range(count // 2):
            for extension in ("jpg", "png"):
                key = f"folder/{number:06d}.{extension}"
                yield Entry(key=key, url=f"/in/{key}", kind="image", size=1, version=version)

    sizes = Sizes(part_rows=500, sorted_rows=500)
    peaks = []
    for work in (planner.freeze, planner.update):
        tracemalloc.start()
        work(output, listing(work.__name__), extension="png", sizes=sizes)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    return peaks[0], peaks[1]


def test_memory_is_a_few_bytes_an_input(tmp_path: Path):
    few, many = peak(1000, str(tmp_path / "few")), peak(9000, str(tmp_path / "many"))
    # Digests of 8 bytes: of the names that are liked and, here for all of them, of the full ones and the crowded.
    assert many[0] - few[0] < 8000 * 40
    # In an update, those of the former outputs too, and of each sorted run a block of 16 KiB.
    assert many[1] - few[1] < 8000 * 40 + 2 * 16384 * 8000 / 500
