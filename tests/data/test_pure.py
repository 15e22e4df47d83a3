from __future__ import annotations

import subprocess
import sys


def test_readers_import_neither_ray_nor_torch() -> None:
    program = (
        "import sys; from raypurify.data import open_source, read_rows; "
        "read_rows(open_source('digits', split='test').shards[0], 0, 2); "
        "print(sorted({'ray', 'torch'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
