"""Tables are read without Arrow's threads, which could abort a process that ends."""

import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pytest

from raypurify import storage

READS = """
import os, sys, time
import pyarrow as pa
from raypurify import storage

url, threads = sys.argv[1], lambda: len(os.listdir("/proc/self/task"))
before = threads()
assert storage.read_table(url).num_rows == 5000
assert storage.read_tables([url, url], pa.schema([("a", pa.int64())])).num_rows == 10000
deadline = time.monotonic() + 5  # a thread that was joined may be listed for a moment
while threads() != before and time.monotonic() < deadline:
    time.sleep(0.01)
assert threads() == before, (before, threads())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="counts the threads of Linux")
def test_reading_tables_starts_no_thread(tmp_path: Path) -> None:
    url = str(tmp_path / "a.parquet")
    storage.write_table(url, pa.table({name: range(5000) for name in "abcdefgh"}))
    subprocess.run([sys.executable, "-c", READS, url], check=True)
