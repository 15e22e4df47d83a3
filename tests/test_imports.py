"""Pure code stands without Ray, nothing loads torchvision, and matplotlib is loaded where a chart is drawn."""

import pkgutil
import subprocess
import sys

import raypurify

SCRIPT = """
import importlib, sys
for name in sys.argv[1:]:
    importlib.import_module(name)
print(*(name for name in ("ray", "torchvision", "matplotlib") if name in sys.modules))
"""


def test_pure_modules_import_no_ray() -> None:
    names = [
        module.name
        for module in pkgutil.walk_packages(raypurify.__path__, "raypurify.")
        if not module.name.startswith("raypurify.distributed")
    ]
    assert "raypurify.training" in names
    loaded = subprocess.run([sys.executable, "-c", SCRIPT, *names], capture_output=True, text=True, check=True)
    assert loaded.stdout.split() == []
