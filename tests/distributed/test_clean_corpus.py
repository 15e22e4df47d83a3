"""Cleaning what real buckets hold: every format and mode, any size, damaged and hostile files, a store that fails."""

import io
import json
import os
import random
import struct
import subprocess
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT
from fault_proxy import Faults
from PIL import Image
from servers import faulty

from raypurify import storage
from raypurify.cleaning.cleaner import CleaningConfig
from raypurify.images import decode
from raypurify.jobs.clean import clean
from raypurify.jobs.resources import ActorPool

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("local_ray")]
POOL = ActorPool(actors=2, cpus_per_actor=1)
KINDS = (
    *(("png", "PNG", mode) for mode in ("L", "RGB", "RGBA", "LA", "P", "1", "I;16")),
    *(("jpg", "JPEG", mode) for mode in ("L", "RGB", "CMYK")),
    *(("webp", "WEBP", mode) for mode in ("RGB", "RGBA")),
    *(("bmp", "BMP", mode) for mode in ("L", "RGB", "P")),
    *(("tif", "TIFF", mode) for mode in ("L", "RGB", "RGBA", "I;16", "CMYK")),
)


def picture(generator: np.random.Generator, height: int, width: int, format: str, mode: str) -> bytes:
    """A blurred random image: its noise would make large ones slow to write."""
    small = generator.integers(0, 256, (max(1, height // 8), max(1, width // 8), 4), dtype=np.uint8)
    image = Image.fromarray(small, "RGBA").resize((width, height))
    if mode == "I;16":
        image = Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257)
    elif mode != "RGBA":
        image = image.convert("RGB").convert(mode)
    out = io.BytesIO()
    image.save(out, format, **({"exif": orientation(6)} if format == "JPEG" and width == 31 else {}))
    return out.getvalue()


def orientation(value: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = value
    return exif.tobytes()


def bomb() -> bytes:
    """A PNG that says that it is 50,000 pixels a side."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 50_000, 50_000, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"0")) + chunk(b"IEND", b"")


def corpus(count: int, corrupt: int) -> Iterator[tuple[str, bytes, str | None]]:
    """Keys, files, and, of the corrupt ones, what the reason has to say."""
    generator = np.random.default_rng(0)
    gif = io.BytesIO()
    Image.new("L", (9, 9)).save(gif, "GIF")
    png = picture(generator, 40, 40, "PNG", "RGB")
    broken = [
        ("png", png[:-30], "PNG"),
        ("png", b"", "empty"),
        ("jpg", b"<html>no such image</html>", "HTML"),
        ("jpg", gif.getvalue(), "GIF"),
        ("png", bomb(), "pixels"),
        ("jpg", picture(generator, 64, 64, "JPEG", "RGB")[:300], "JPEG"),
        ("webp", picture(generator, 64, 64, "WEBP", "RGB")[:100], "WebP"),
        ("bmp", picture(generator, 64, 64, "BMP", "RGB")[:500], "BMP"),
        ("tif", picture(generator, 64, 64, "TIFF", "RGB")[:500], "TIFF"),
        ("png", png[:60] + bytes([png[60] ^ 255]) + png[61:], "PNG"),
    ]
    for index in range(count):
        if index < corrupt:
            extension, data, reason = broken[index % len(broken)]
            yield f"corrupt/{index:04d}.{extension}", data, reason
            continue
        extension, format, mode = KINDS[index % len(KINDS)]
        height, width = (int(side) for side in generator.integers(1, 65, 2))
        if index == corrupt:
            height, width = 1, 1
        elif index >= count - 2:
            height, width, extension, format, mode = 3000, 4000, "jpg", "JPEG", "RGB"
        yield (
            f"{mode.replace(';', '')}/{index % 7}/{index:04d}.{extension}",
            picture(generator, height, width, format, mode),
            None,
        )


def accounts(output: str, part: str) -> dict[str, dict[str, object]]:
    urls = storage.list_files(storage.join(output, part), ".parquet")
    rows = [row for url in urls for row in storage.read_table(url).to_pylist()]
    found = {row["id"]: row for row in rows}
    assert len(found) == len(rows), "an id twice"
    return found


def test_a_mixed_corpus_on_s3(s3: str) -> None:
    source, output = storage.join(s3, "mixed"), storage.join(s3, "mixed-clean")
    files = {key: (data, reason) for key, data, reason in corpus(2000, 200)}
    for key, (data, _) in files.items():
        storage.write_bytes(storage.join(source, key), data)
    totals = clean(CleaningConfig(input=source, purifier="median_filter"), POOL, output)
    rejects, manifest = accounts(output, "rejects"), accounts(output, "manifest")
    assert (totals.cleaned, totals.rejected) == (len(manifest), len(rejects)) == (1800, 200)
    assert set(rejects) == {key for key, (_, reason) in files.items() if reason}
    for key, row in rejects.items():
        assert str(files[key][1]).lower() in str(row["reason"]).lower(), (key, row["reason"])
    images = set(storage.list_files(storage.join(output, "images")))
    assert images == {row["output"] for row in manifest.values()}
    for row in list(manifest.values())[::50]:
        assert decode(storage.read_bytes(str(row["output"]))).shape[:2] == (row["height"], row["width"])


def test_malformed_and_hostile_inputs(tmp_path: Path) -> None:
    draw = random.Random(0)
    generator = np.random.default_rng(1)
    source = tmp_path / "a" / "in"
    source.mkdir(parents=True)
    names = [
        "x..",
        "new\nline",
        "ünï-код-图",
        "percent%2e%2e%2f",
        "hash#1",
        "quest?ion",
        "trailing. ",
        "n" * 240,
        "-rf",
        "a b",
    ]
    for index in range(300):
        extension, format, mode = KINDS[index % len(KINDS)]
        data = bytearray(picture(generator, 20, 20, format, mode))
        for _ in range(draw.randint(0, 6)):
            data[draw.randrange(len(data))] = draw.randrange(256)
        if index % 3 == 0:
            del data[draw.randrange(len(data)) :]
        folder = source / draw.choice(["", "deep/er", "dots..."])
        folder.mkdir(parents=True, exist_ok=True)
        name = f"{names[index % len(names)][:200]}{index}.{draw.choice([extension, 'png', 'JPG'])}"
        (folder / name).write_bytes(bomb() if index % 50 == 49 else bytes(data))
    outside = sorted(path for path in tmp_path.rglob("*"))
    output = str(tmp_path / "b" / "out")
    totals = clean(CleaningConfig(input=str(source), purifier="median_filter"), POOL, output)
    assert totals.n == len(accounts(output, "manifest") | accounts(output, "rejects")) == 300
    assert totals.rejected >= 100
    written = sorted(path for path in tmp_path.rglob("*") if not path.is_relative_to(tmp_path / "b"))
    assert written == outside
    assert len(storage.list_files(f"{output}/images")) == totals.cleaned


def test_a_store_that_fails(s3: str) -> None:
    source, output = storage.join(s3, "faulty"), storage.join(s3, "faulty-clean")
    files = {key: data for key, data, _ in corpus(600, 0) if len(data) < 100_000}
    for key, data in files.items():
        storage.write_bytes(storage.join(source, key), data)
    flags = ["--input", source, "--purifier", "median_filter", "--output", output, "--actors", "2"]
    with faulty(Faults(error=0.04, slow_down=0.03, reset=0.03, hang=0.01, hang_seconds=30, seed=1)) as proxy:
        environment = {**os.environ, "FSSPEC_S3_CONFIG_KWARGS": '{"read_timeout": 3}'}
        job = subprocess.run([sys.executable, str(ROOT / "jobs/clean.py"), *flags], env=environment, timeout=600)
    assert job.returncode == 0
    assert set(accounts(output, "manifest")) == set(files)
    assert not accounts(output, "rejects")
    counts = json.loads(storage.read_bytes(f"{output}/run.json"))["attempts"][0]["counts"]
    assert counts["requests"] > 1200
    assert counts["retries"] > 0.05 * counts["requests"]
    assert proxy.counts["hang"] > 0
    print(counts["requests"], counts["retries"], dict(proxy.counts))


def test_a_large_photo_takes_little_memory(tmp_path: Path) -> None:
    """A 12-megapixel photo through CRU-Net of the default width, in a process of its own."""
    (tmp_path / "in").mkdir()
    data = picture(np.random.default_rng(0), 3000, 4000, "JPEG", "RGB")
    (tmp_path / "in" / "photo.jpg").write_bytes(data)
    script = """
import resource, sys, torch
from raypurify.storage import checkpoints
from raypurify.cleaning.entries import Entry
from raypurify.cleaning.plan import UnitContent
from raypurify.cleaning.cleaner import Cleaner, Cleaning, CleaningConfig
from raypurify.purifiers import cru_net
folder, size = sys.argv[1], int(sys.argv[2])
network = cru_net.build(channels=3)
torch.nn.init.normal_(network.output.weight, std=0.01)
config = {"kind": "purifier", "plugin": "cru_net", "params": {"channels": 3}}
checkpoints.save(folder + "/weights", config, network.state_dict())
torch.set_num_threads(1)
work = Cleaning.load(CleaningConfig(input=folder, purifier=folder + "/weights"), folder + "/out")
entry = Entry(key="photo.jpg", url=folder + "/in/photo.jpg", kind="image", size=size, version="", output="photo.png")
cleaned = Cleaner(work, "cpu", batch=250, threads=1)(UnitContent(name="000", entries=(entry,)))
assert len(cleaned.rows) == 1, cleaned
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20)
"""
    process = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path), str(len(data))], capture_output=True, text=True, cwd=ROOT
    )
    assert process.returncode == 0, process.stderr
    peak = float(process.stdout.split()[-1])
    print(f"peak {peak:.2f} GiB")
    assert peak < 1.5
