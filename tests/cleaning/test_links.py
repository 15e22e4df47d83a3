"""Links to the web in a list: one that is dead is one reject, whatever it was to be."""

from __future__ import annotations

import io
import os
import tarfile
from pathlib import Path

import numpy as np
import pytest
from one_process import clean, rows_of
from PIL import Image
from servers import SIGNATURE, USER, WORD, free_port, guarded_web

from raypurify import storage
from raypurify.cleaning import planner
from raypurify.cleaning.cleaner import CleaningConfig
from raypurify.cleaning.inputs import listed
from raypurify.images import decode
from raypurify.storage import retries
from raypurify.storage.retries import Retries


@pytest.fixture(autouse=True)
def _impatient():
    retries.use(Retries(attempts=2, first_pause=0))
    yield
    retries.use(None)


@pytest.mark.parametrize("death", ["gone", "refused", "dead host"])
def test_a_dead_link_is_a_reject(tmp_path: Path, death: str):
    names = ("a.png", "rows.parquet", "b.tar", "c.tar.gz")
    (tmp_path / "web").mkdir()
    output, source = str(tmp_path / "out"), tmp_path / "list.txt"
    with tarfile.open(tmp_path / "web" / "good.tar", "w") as tar:
        tar.addfile(tarfile.TarInfo("notes.txt"), io.BytesIO())
    with guarded_web(tmp_path / "web") as host:
        dead = {"gone": host, "refused": host, "dead host": f"127.0.0.1:{free_port()}"}[death]
        query = "" if death == "refused" else f"?sig={SIGNATURE}"
        links = [f"http://{dead}/{name}{query}" for name in names]
        source.write_text("\n".join([*links, f"http://{host}/good.tar?sig={SIGNATURE}"]))
        totals = clean(CleaningConfig(input=str(source), purifier="identity"), output)
    assert totals is not None
    assert (totals.cleaned, totals.rejected) == (0, 4)
    reasons = {row["id"].partition("#")[0].rpartition("/")[2]: row["reason"] for row in rows_of(output, "rejects")}
    assert set(reasons) == set(names)
    told = {"gone": "there is no", "refused": "access is denied", "dead host": "no success in 2 attempts"}[death]
    assert all(told in reason for reason in reasons.values()), reasons


@pytest.mark.parametrize("withheld", ["", "Last-Modified"])
def test_an_update_sees_what_changed_behind_a_web_folder(tmp_path: Path, withheld: str):
    """A file is replaced by another of its size. A server that tells of no change has all cleaned anew."""
    web, output = tmp_path / "web", str(tmp_path / "out")
    web.mkdir()
    for number, name in enumerate(("a.bmp", "b.bmp")):
        write_grey(web / name, 10 * number, written=1000)
    with guarded_web(web, withheld=withheld) as host:
        config = CleaningConfig(input=f"http://{USER}:{WORD}@{host}/", purifier="identity")
        assert clean(config, output) is not None
        write_grey(web / "b.bmp", 99, written=2000)
        assert clean(config, output, update=True) is not None
        assert decode(storage.read_bytes(f"{output}/images/b.png"))[0, 0, 0] == 99
        changes = planner.update(output, listed(config.input, output=output), extension="png")
        assert (changes.new, changes.changed, changes.unknown, changes.gone) == (0, 0, 2 if withheld else 0, 0)


def write_grey(path: Path, level: int, *, written: float) -> None:
    Image.fromarray(np.full((8, 8), level, np.uint8)).save(path)
    os.utime(path, (written, written))
