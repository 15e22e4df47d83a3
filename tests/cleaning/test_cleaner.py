"""Units cleaned in this process: models that fail on some images, inputs that end it, runs of long row groups."""

import io
import os
import resource
import tarfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from raypurify import storage
from raypurify.cleaning import accounts, plan, planner, quarantine, reader
from raypurify.cleaning.cleaner import Cleaner, Cleaning, CleaningConfig, Format
from raypurify.cleaning.entries import Entry
from raypurify.cleaning.inputs import listed
from raypurify.cleaning.plan import UnitContent
from raypurify.cleaning.planner import Sizes
from raypurify.data import files
from raypurify.data.base import DataError
from raypurify.images import decode, encode_png

BRIGHT = 5
LIMITS = reader.Limits(max_pixels=1 << 20)


def image(index: int, height: int = 12, *, corner: int = 0) -> bytes:
    pixels = np.random.default_rng(index).integers(0, 255, (height, 10, 3), dtype=np.uint8)
    pixels[0, 0] = corner
    return encode_png(pixels)


@pytest.fixture
def source(tmp_path: Path) -> str:
    """Twenty images; one has a bright corner, four are of another height."""
    (tmp_path / "in").mkdir()
    for index in range(20):
        height = 13 if index >= 16 else 12
        corner = 255 if index == BRIGHT else 0
        (tmp_path / "in" / f"{index:02d}.png").write_bytes(image(index, height, corner=corner))
    return str(tmp_path / "in")


def units_of(source: str, output: str, sizes: Sizes | None = None) -> list[UnitContent]:
    planner.freeze(output, listed(source, output=output), extension="png", sizes=sizes)
    return [unit.read() for unit in plan.units(output)]


def cleaner(source: str, output: str, purifier: str, classifier: str | None = None) -> Cleaner:
    config = CleaningConfig(input=source, purifier=purifier, classifier=classifier)
    return Cleaner(Cleaning.load(config, output), "cpu", batch=8, threads=1)


def test_images_that_a_purifier_fails_on_are_rejects(source: str, tmp_path: Path):
    output = str(tmp_path / "out")
    [unit] = units_of(source, output)
    cleaned = cleaner(source, output, "models_that_fail:Picky")(unit)
    reasons = {reject["id"]: (reject["stage"], reject["reason"]) for reject in cleaned.rejects}
    name = "the purifier models_that_fail:Picky fails on it: "
    assert reasons == {
        f"{BRIGHT:02d}.png": ("purify", f"{name}RuntimeError: a bright corner"),
        **{f"{index}.png": ("purify", f"{name}IndexError: thirteen rows") for index in range(16, 20)},
    }
    assert len(cleaned.rows) == 15
    assert len(storage.list_files(f"{output}/images")) == 15


def test_images_that_a_purifier_makes_nan_or_infinite_are_rejects(tmp_path: Path):
    (tmp_path / "in").mkdir()
    pixels = np.full((6, 12, 10, 3), 100, np.uint8)
    pixels[2] = 0  # 0 / 0
    pixels[4, 0, 0] = 0  # 100 / 0
    for index in range(6):
        (tmp_path / "in" / f"{index}.png").write_bytes(encode_png(pixels[index]))
    output = str(tmp_path / "out")
    [unit] = units_of(str(tmp_path / "in"), output)
    cleaned = cleaner(str(tmp_path / "in"), output, "models_that_fail:Divides")(unit)
    assert {reject["id"]: reject["stage"] for reject in cleaned.rejects} == {"2.png": "purify", "4.png": "purify"}
    assert all("NaN or infinity" in reject["reason"] for reject in cleaned.rejects)
    assert [row["id"] for row in cleaned.rows] == ["0.png", "1.png", "3.png", "5.png"]
    assert len(storage.list_files(f"{output}/images")) == 4


def test_images_that_a_classifier_fails_on_have_no_labels(source: str, tmp_path: Path):
    output = str(tmp_path / "out")
    [unit] = units_of(source, output)
    rows = cleaner(source, output, "identity", "models_that_fail:Judge")(unit).rows
    assert {row["height"] for row in rows if row["pred_input"] is None} == {12}
    assert {row["height"] for row in rows if row["pred_cleaned"] is not None} == {13}


@pytest.mark.parametrize("format", ["jpeg", "webp"])
@pytest.mark.parametrize("channels", [1, 3])
def test_lossy_images_are_measured_as_they_are_written(tmp_path: Path, format: Format, channels: int):
    (tmp_path / "in").mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (40, 30, channels), dtype=np.uint8)
    (tmp_path / "in" / "a.png").write_bytes(encode_png(pixels))
    output = str(tmp_path / "out")
    [unit] = units_of(str(tmp_path / "in"), output)
    config = CleaningConfig(input=str(tmp_path / "in"), purifier="identity", format=format, quality=40)
    [row] = Cleaner(Cleaning.load(config, output), "cpu", batch=8, threads=1)(unit).rows
    [url] = storage.list_files(f"{output}/images")
    written = (
        decode(storage.read_bytes(url)).mean(axis=2, keepdims=True)
        if channels == 1
        else decode(storage.read_bytes(url))
    )
    difference = np.abs(np.rint(written).astype(np.int64) - pixels)
    assert difference.max() > 10
    assert row["linf"] == pytest.approx(difference.max() / 255, abs=1e-6)


def test_a_lack_of_memory_is_no_reject(tmp_path: Path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.png").write_bytes(image(0, 40))
    output = str(tmp_path / "out")
    [unit] = units_of(str(tmp_path / "in"), output)
    clean = cleaner(str(tmp_path / "in"), output, "models_that_fail:Starved")
    with pytest.raises(torch.OutOfMemoryError):
        clean(unit)


def test_an_image_that_ends_the_process_in_the_purifier_is_found(source: str, tmp_path: Path):
    output = str(tmp_path / "out")
    [unit] = units_of(source, output)
    clean = cleaner(source, output, "models_that_fail:Deadly")
    assert quarantine.inspect(unit, 1 << 20)[0] == {}
    killers = quarantine.inspect(unit, 1 << 20, work=clean.work)[0]
    assert killers == {f"{BRIGHT:02d}.png": "ends the process that cleans it (SIGSEGV)"}
    cleaned = clean(unit, killers)
    assert [reject["id"] for reject in cleaned.rejects] == list(killers)
    assert len(cleaned.rows) == 19


def test_what_a_model_prints_is_not_taken_for_a_word_of_the_child(source: str, tmp_path: Path):
    output = str(tmp_path / "out")
    [unit] = units_of(source, output)
    clean = cleaner(source, output, "models_that_fail:Talkative")
    assert quarantine.inspect(unit, 1 << 20, work=clean.work)[0] == {}


def test_a_model_that_ends_the_process_on_all_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(quarantine, "MANY", 3)
    (tmp_path / "in").mkdir()
    for index in range(10):
        (tmp_path / "in" / f"{index}.png").write_bytes(image(index, 33))
    output = str(tmp_path / "out")
    [unit] = units_of(str(tmp_path / "in"), output)
    clean = cleaner(str(tmp_path / "in"), output, "models_that_fail:Fatal")
    with pytest.raises(RuntimeError, match=r"3 of its first 3 .* it may well be the purifier .models_that_fail:Fatal."):
        quarantine.inspect(unit, 1 << 20, work=clean.work)


def test_a_child_goes_on_behind_the_last_culprit(source: str, tmp_path: Path):
    for name in ("10.png", "15.png"):
        (tmp_path / "in" / name).write_bytes(image(0, corner=255))
    output = str(tmp_path / "out")
    [unit] = units_of(source, output)
    clean = cleaner(source, output, "models_that_fail:Deadly")
    killers, shapes = quarantine.inspect(unit, 1 << 20, work=clean.work)
    assert list(killers) == [f"{BRIGHT:02d}.png", "10.png", "15.png"]
    assert len(shapes) == 17


def publish(unit: UnitContent, clean: Cleaner) -> None:
    accounts.publish(clean.work.output, unit.name, clean(unit))


def test_a_file_that_changes_every_night(tmp_path: Path):
    """Its unit, and then the unit of the update, have nothing left that is theirs."""
    folder, output = tmp_path / "in", str(tmp_path / "out")
    folder.mkdir()
    for night, height in enumerate((10, 20, 30, 40)):
        (folder / "a.png").write_bytes(image(night, height))
        if night:
            changes = planner.update(output, listed(str(folder), output=output), extension="png")
            assert (changes.new, changes.changed) == (0, 1)
        else:
            planner.freeze(output, listed(str(folder), output=output), extension="png")
        clean = cleaner(str(folder), output, "identity")
        newest = max(plan.units(output), key=lambda unit: unit.name)
        publish(newest.read(), clean)
        accounts.retire(output)
        totals = accounts.add_up(output)
        assert (totals.cleaned, totals.rejected) == (1, 0)
        [row] = rows_of(output, "manifest")
        assert row["height"] == height
    assert len(storage.list_files(f"{output}/plan", accounts.RETIRED)) == 3


def rows_of(output: str, part: str) -> list[dict[str, Any]]:
    return [row for url in storage.list_files(f"{output}/{part}") for row in pq.read_table(url).to_pylist()]


def tar_of(members: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return out.getvalue()


def items_of(path: Path, output: str) -> list[reader.Item]:
    return [
        item
        for unit in units_of(str(path), output)
        for segment in reader.segments(unit, LIMITS)
        for item in segment.items
    ]


def tar_of_ten() -> tuple[bytearray, int]:
    """A tar, and where its sixth member begins."""
    data = tar_of({f"{index}.png": image(index) for index in range(10)})
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        return bytearray(data), [member.offset for member in tar][5]


def test_a_tar_with_a_damaged_header_says_so_and_gives_all_others(tmp_path: Path):
    data, sixth = tar_of_ten()
    data[sixth + 3] ^= 0x55
    (tmp_path / "a.tar").write_bytes(data)
    items = items_of(tmp_path / "a.tar", str(tmp_path / "out"))
    assert [item.id for item in items if item.picture] == [f"a.tar#{index}.png" for index in range(10) if index != 5]
    [reject] = [item for item in items if item.picture is None]
    assert (reject.id, reject.stage) == ("a.tar", "read")
    assert reject.reason == f"the tar is damaged: what begins at its byte {sixth} is of no member"


@pytest.mark.parametrize("damage", ["cut in a header", "cut after a member", "cut in a member"])
def test_a_tar_that_is_cut_off_says_so_and_gives_what_comes_before(tmp_path: Path, damage: str):
    data, sixth = tar_of_ten()
    del data[sixth + {"cut in a header": 100, "cut after a member": 0, "cut in a member": 600}[damage] :]
    (tmp_path / "a.tar").write_bytes(data)
    items = items_of(tmp_path / "a.tar", str(tmp_path / "out"))
    assert [item.id for item in items if item.picture is not None] == [f"a.tar#{index}.png" for index in range(5)]
    [reject] = [item for item in items if item.picture is None]
    assert (reject.id, reject.stage) == ("a.tar", "read")
    assert "the tar can't be read to its end" in reject.reason


def test_links_in_a_tar_are_rejects(tmp_path: Path):
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        info = tarfile.TarInfo("a.png")
        info.size = len(image(0))
        tar.addfile(info, io.BytesIO(image(0)))
        for name, kind in (("b.png", tarfile.LNKTYPE), ("c.png", tarfile.SYMTYPE), ("d.txt", tarfile.SYMTYPE)):
            link = tarfile.TarInfo(name)
            link.type, link.linkname = kind, "a.png"
            tar.addfile(link)
    items = items_of(tmp_path / "a.tar", str(tmp_path / "out"))
    assert {item.id: item.reason for item in items} == {
        "a.tar#a.png": "",
        **{
            f"a.tar#{name}": "is a link to a.png; links in a tar are not followed"
            for name in ("b.png", "c.png", "d.txt")
        },
    }


@pytest.mark.parametrize(
    ("columns", "reason"),
    [
        ({"image": [[1, 2, 3, 4]], "shape": [4.0]}, "expected a shape"),
        ({"image": [[1, 2, 3, 4]], "shape": ["2x2"]}, "expected a shape"),
        ({"image": [[1, 2, 3, 4]], "shape": [[2.0, 2.0]]}, "expected a shape"),
        ({"image": [[1, 2, 3, 4]], "shape": [None]}, "null"),
    ],
)
def test_odd_columns_are_rejects(tmp_path: Path, columns: dict[str, list[Any]], reason: str):
    kind = {"image": pa.list_(pa.uint8())}
    table = pa.table({name: pa.array(values, kind.get(name)) for name, values in columns.items()})
    pq.write_table(table, tmp_path / "a.parquet")
    [item] = items_of(tmp_path / "a.parquet", str(tmp_path / "out"))
    assert item.picture is None
    assert reason in item.reason


def test_columns_of_any_type_are_kept_where_rows_are_rejected(tmp_path: Path):
    images = [image(index) if index % 3 else b"broken" for index in range(7)]
    table = pa.table({"image": images, "text": pa.array([str(index) for index in range(7)], pa.string_view())})
    pq.write_table(table, tmp_path / "a.parquet")
    output = str(tmp_path / "out")
    [unit] = units_of(str(tmp_path / "a.parquet"), output)
    cleaned = cleaner(str(tmp_path / "a.parquet"), output, "identity")(unit)
    assert (len(cleaned.rows), len(cleaned.rejects)) == (4, 3)
    [url] = storage.list_files(f"{output}/images")
    assert pq.read_table(url)["text"].to_pylist() == ["1", "2", "4", "5"]


def test_a_tar_that_can_no_longer_be_read_leaves_nothing(tmp_path: Path):
    (tmp_path / "a.tar").write_bytes(tar_of({"0.png": image(0)}))
    output = str(tmp_path / "out")
    [unit] = units_of(str(tmp_path / "a.tar"), output)
    clean = cleaner(str(tmp_path / "a.tar"), output, "identity")
    assert len(clean(unit).rows) == 1
    assert len(storage.list_files(f"{output}/images")) == 1
    (tmp_path / "a.tar").write_bytes(b"garbage" * 1000)
    [reject] = clean(unit).rejects
    assert reject["id"] == "a.tar"
    assert storage.list_files(f"{output}/images") == []


@pytest.mark.parametrize("kind", ["tar", "parquet"])
def test_an_input_that_this_machine_cannot_open_now_is_no_reject(tmp_path: Path, kind: str):
    path, output = tmp_path / f"a.{kind}", str(tmp_path / "out")
    if kind == "tar":
        path.write_bytes(tar_of({"0.png": image(0)}))
    else:
        write_rows(path, 1, 1)
    [unit] = units_of(str(path), output)
    clean = cleaner(str(path), output, "identity")
    assert len(clean(unit).rows) == 1
    [url] = storage.list_files(f"{output}/images")
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        with open(os.devnull) as lowest:
            free = lowest.fileno()
        resource.setrlimit(resource.RLIMIT_NOFILE, (free, limits[1]))
        with pytest.raises(DataError, match="Too many open files"):
            clean(unit)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert storage.list_files(f"{output}/images") == [url]


def test_transparency_that_cannot_be_written_is_on_white_on_both_sides_of_the_comparison(tmp_path: Path):
    pixels = np.zeros((12, 12, 4), np.uint8)
    pixels[:, 6:, 3] = 255
    (tmp_path / "in").mkdir()
    Image.fromarray(pixels, "RGBA").save(tmp_path / "in" / "a.png")
    output = str(tmp_path / "out")
    [unit] = units_of(str(tmp_path / "in"), output)
    config = CleaningConfig(input=str(tmp_path / "in"), purifier="identity", format="bmp")
    [row] = Cleaner(Cleaning.load(config, output), "cpu", batch=8, threads=1)(unit).rows
    assert (row["linf"], row["psnr"], row["ssim"]) == (0.0, 100.0, 1.0)
    written = np.asarray(Image.open(next((tmp_path / "out" / "images").iterdir())))
    assert (written[:, :6] == 255).all()
    assert (written[:, 6:] == 0).all()
    assert row["notes"] == ["alpha composited on white for bmp"]


def test_a_classifier_of_colour_images_labels_grey_ones_and_leaves_alone_what_is_stored_as_it_is_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "striped.py").write_text(
        "import torch\n"
        "class Striped(torch.nn.Module):\n"
        '    """The column of the first row that is brightest."""\n'
        '    view = {"resize": 12, "crop": 8}\n'
        "    def forward(self, x):\n"
        "        assert x.shape[1:] == (3, 8, 8), x.shape\n"
        "        return x[:, :, 0].mean(dim=1)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    grey = np.zeros((8, 8), np.uint8)
    grey[0, 5] = 255
    (tmp_path / "in").mkdir()
    Image.fromarray(grey).save(tmp_path / "in" / "grey.png")
    Image.fromarray(np.repeat(grey[..., None], 3, axis=2)).save(tmp_path / "in" / "stored.png")
    output = str(tmp_path / "out")
    [unit] = units_of(str(tmp_path / "in"), output)
    config = CleaningConfig(input=str(tmp_path / "in"), purifier="identity", classifier="striped:Striped")
    rows = Cleaner(Cleaning.load(config, output), "cpu", batch=8, threads=1)(unit).rows
    assert [(row["pred_input"], row["pred_cleaned"]) for row in rows] == [(5, 5), (5, 5)]


def test_a_vote_tells_of_images_whose_answer_is_unsure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "halves.py").write_text(
        "from torch import nn, stack\n\n\nclass Halves(nn.Module):\n    def forward(self, x):\n"
        "        assert x.shape[2] == 8\n"
        "        mean = x.mean(dim=(1, 2, 3)) - 0.5\n        return stack([-mean, mean], dim=1)\n"
        "\n\nclass Coloured(nn.Module):\n    def forward(self, x):\n"
        "        assert x.shape[1] == 3\n        return x.mean(dim=(2, 3))\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "in").mkdir()
    for name, side, level in (("sure", 8, 255), ("unsure", 8, 128), ("other", 9, 128)):
        Image.fromarray(np.full((side, 8), level, np.uint8)).save(tmp_path / "in" / f"{name}.png")
    output = str(tmp_path / "out")
    [unit] = units_of(str(tmp_path / "in"), output)
    named = {"input": str(tmp_path / "in"), "purifier": "identity"}
    config = CleaningConfig(**named, classifier="halves:Halves", certify_draws=50, certify_sigma=1.0)
    work = Cleaning.load(config, output)
    rows = Cleaner(work, "cpu", batch=8, threads=1)(unit).rows
    assert {row["id"]: row["detected"] for row in rows} == {"sure.png": False, "unsure.png": True, "other.png": None}
    colour = replace(config, purifier="weights/photos/cru_net")
    rows = Cleaner(Cleaning.load(colour, output), "cpu", batch=8, threads=1)(unit).rows
    assert {row["id"]: row["detected"] for row in rows}["unsure.png"] is True, "grey goes through it as colour"
    grey = replace(config, purifier="weights/mnist/cru_net-a_net-denoiser-0.5", classifier="halves:Coloured")
    rows = Cleaner(Cleaning.load(grey, output), "cpu", batch=8, threads=1)(unit).rows
    told = {row["id"]: row["detected"] for row in rows}
    assert None not in (told["sure.png"], told["unsure.png"]), "a grey purifier before a classifier of colours"
    assert "certify_draws" in work.identity()
    assert "certify_draws" not in Cleaning.load(CleaningConfig(**named), output).identity()
    with pytest.raises(ValueError, match="certify_draws needs a classifier"):
        CleaningConfig(**named, certify_draws=50)


def test_dictionaries_of_images_and_permuted_tensors_are_read(tmp_path: Path):
    pixels = np.random.default_rng(0).integers(0, 256, (3, 5, 7, 3), dtype=np.uint8)
    encoded = [encode_png(image) for image in pixels]
    pq.write_table(pa.table({"image": pa.array([*encoded, *encoded]).dictionary_encode()}), tmp_path / "a.parquet")
    kind = pa.fixed_shape_tensor(pa.uint8(), (3, 5, 7), permutation=(1, 2, 0))
    lists = pa.FixedSizeListArray.from_arrays(pixels.transpose(0, 3, 1, 2).reshape(-1), 105)
    pq.write_table(pa.table({"image": pa.ExtensionArray.from_storage(kind, lists)}), tmp_path / "b.parquet")
    for name, copies in (("a.parquet", 2), ("b.parquet", 1)):
        items = items_of(tmp_path / name, str(tmp_path / "out" / name))
        found = [item.picture.pixels for item in items if item.picture]
        np.testing.assert_array_equal(found, np.concatenate([pixels] * copies))


def test_a_null_among_permuted_tensors_is_the_only_reject(tmp_path: Path):
    pixels = np.random.default_rng(0).integers(0, 256, (3, 5, 7, 3), dtype=np.uint8)
    kind = pa.fixed_shape_tensor(pa.uint8(), (3, 5, 7), permutation=(1, 2, 0))
    rows = [image.transpose(2, 0, 1).ravel().tolist() for image in pixels]
    lists = pa.array([rows[0], None, rows[1], rows[2]], pa.list_(pa.uint8(), 105))
    pq.write_table(pa.table({"image": pa.ExtensionArray.from_storage(kind, lists)}), tmp_path / "a.parquet")
    items = items_of(tmp_path / "a.parquet", str(tmp_path / "out"))
    assert [item.id for item in items if item.reason] == ["a.parquet#1"]
    np.testing.assert_array_equal([item.picture.pixels for item in items if item.picture], pixels)


def write_rows(path: Path, rows: int, group: int) -> list[bytes]:
    images = [image(index) for index in range(rows)]
    table = pa.table({"image": images, "number": range(rows)})
    pq.write_table(table, path, row_group_size=group)
    return images


@pytest.mark.parametrize("group", [1000, 100, 64, 7])
def test_every_row_is_read_once_whatever_its_row_group(tmp_path: Path, group: int):
    images = write_rows(tmp_path / "a.parquet", 300, group)
    units = units_of(str(tmp_path / "a.parquet"), str(tmp_path / "out"), Sizes(unit_entries=16))
    if group == 1000:
        assert sorted(len(unit.entries) for unit in units) == [1, 3, 3, 3, 3, 3, 3]
    ids, numbers, pixels = [], [], []
    for unit in units:
        for found in reader.segments(unit, LIMITS):
            assert found.table is not None
            numbers += found.table["number"].to_pylist()
            for item in found.items:
                assert item.picture is not None, item.reason
                ids.append(item.id)
                pixels.append(encode_png(item.picture.pixels))
    assert ids == [f"a.parquet#{number}" for number in range(300)]
    assert numbers == list(range(300))
    assert pixels == images


def test_a_part_of_a_row_group_is_fetched_and_no_more(tmp_path: Path, s3: str):
    """Of a group on S3, what comes before the rows, but not what follows them."""
    rows = [np.random.default_rng(index).bytes(2000) for index in range(20_000)]
    pq.write_table(pa.table({"image": rows}), tmp_path / "large.parquet", row_group_size=20_000, compression="none")
    url = f"{s3}/parts/large.parquet"
    storage.write_bytes(url, (tmp_path / "large.parquet").read_bytes())
    entry = Entry(key="large.parquet", url=url, kind="parquet", size=-1, version="", first=0, rows=10, output="")
    opened: list[CountedReads] = []
    real = files.open_file

    def counted(name: str) -> CountedReads:
        opened.append(CountedReads(real(name)))
        return opened[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files, "open_file", counted)
        unit = UnitContent(name="0", entries=(entry, entry._replace(first=10)))
        found = [item for segment in reader.segments(unit, LIMITS) for item in segment.items]
    assert len(found) == 20
    assert len(opened) == 1
    assert opened[0].count < 12_000_000


class CountedReads(io.RawIOBase):
    """A real file that counts the bytes that are read of it."""

    def __init__(self, file: io.IOBase) -> None:
        self.file, self.count = file, 0

    def read(self, size: int = -1) -> bytes:
        data: bytes = self.file.read(size)  # type: ignore[attr-defined]
        self.count += len(data)
        return data

    def seek(self, offset: int, whence: int = 0) -> int:
        return self.file.seek(offset, whence)

    def tell(self) -> int:
        return self.file.tell()

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True


def test_runs_and_tars_that_end_their_process_are_rejects(tmp_path: Path):
    (tmp_path / "in").mkdir()
    write_rows(tmp_path / "in" / "a.parquet", 30, 30)
    with tarfile.open(tmp_path / "in" / "b.tar", "w") as tar:
        info = tarfile.TarInfo("0.png")
        info.size = len(image(0))
        tar.addfile(info, io.BytesIO(image(0)))
    units = units_of(str(tmp_path / "in"), str(tmp_path / "out"), Sizes(unit_entries=10))
    killers = {"a.parquet#10..": "ends it", "b.tar": "ends it too"}
    said: list[str] = []
    limits = replace(LIMITS, killers=killers, announce=said.append)
    items = [item for unit in units for segment in reader.segments(unit, limits) for item in segment.items]
    reasons = {item.id: item.reason for item in items if item.picture is None}
    assert reasons == {**{f"a.parquet#{row}": "ends it" for row in range(10, 20)}, "b.tar": "ends it too"}
    assert len(items) == 31
    assert {"a.parquet#0..", "a.parquet#20..", "a.parquet#0", "a.parquet#29"} <= set(said)
    assert not {"a.parquet#10..", "a.parquet#10", "b.tar"} & set(said)
