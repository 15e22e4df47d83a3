from pathlib import Path

import pyarrow as pa
import pytest

from raypurify import storage


def test_a_write_replaces_the_whole_file_and_leaves_nothing_beside(tmp_path: Path) -> None:
    url = str(tmp_path / "deep" / "a.bin")
    storage.write_bytes(url, b"first")
    storage.write_bytes(url, b"second")
    assert storage.read_bytes(url) == b"second"
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["a.bin"]


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url = str(tmp_path / "a.bin")
    storage.write_bytes(url, b"old")

    def full(*_: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(OSError, match="no space"):
        storage.write_bytes(url, b"new")
    assert storage.read_bytes(url) == b"old"


def test_json_and_tables_come_back(tmp_path: Path) -> None:
    storage.write_json(str(tmp_path / "a.json"), {"name": "é"})
    assert storage.read_json(str(tmp_path / "a.json")) == {"name": "é"}
    table = pa.table({"n": [1, 2]})
    storage.write_table(str(tmp_path / "a.parquet"), table)
    assert storage.read_table(str(tmp_path / "a.parquet")).equals(table)
    assert storage.read_tables([], table.schema).num_rows == 0


def test_errors_name_the_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nowhere\.json"):
        storage.read_json(str(tmp_path / "nowhere.json"))
    (tmp_path / "broken.json").write_text("{")
    with pytest.raises(ValueError, match=r"broken\.json is not JSON"):
        storage.read_json(str(tmp_path / "broken.json"))
    with pytest.raises(ValueError, match="nosuchscheme"):
        storage.exists("nosuchscheme://bucket/key")


def test_local_paths_become_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert storage.absolute("runs/a") == str(tmp_path / "runs/a")
    assert storage.is_local("runs/a")
    assert not storage.is_local("memory://a")
    assert storage.absolute("memory://a/b").startswith("memory://")


def test_listing_and_removing(tmp_path: Path) -> None:
    root = str(tmp_path / "run")
    assert storage.list_files(root) == []
    for name in ("b.parquet", "a.parquet", "c.json"):
        storage.write_bytes(storage.join(root, "x", name), b"")
    assert [url.rpartition("/")[2] for url in storage.list_files(root, ".parquet")] == ["a.parquet", "b.parquet"]
    storage.remove(root)
    storage.remove(root)
    assert not storage.exists(root)
