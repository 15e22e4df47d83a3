"""Links to the web in a list: one that is dead is one reject, whatever it was to be."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import pytest
from one_process import clean, rows_of
from servers import SIGNATURE, free_port, guarded_web

from raypurify import retries
from raypurify.cleaning.config import CleaningConfig
from raypurify.retries import Retries


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
