"""Pure code stands without Ray, readers without torch; charts alone load matplotlib, and nothing torchvision."""

import pkgutil
import subprocess
import sys

import raypurify

SCRIPT = """
import importlib, sys
for name in sys.argv[1:]:
    importlib.import_module(name)
print(*(name for name in ("ray", "torch", "torchvision", "matplotlib") if name in sys.modules))
"""


def loaded_by(*names: str) -> list[str]:
    """Which of the large packages are loaded with some modules."""
    loaded = subprocess.run([sys.executable, "-c", SCRIPT, *names], capture_output=True, text=True, check=True)
    return loaded.stdout.split()


def test_pure_modules_import_no_ray() -> None:
    names = [
        module.name
        for module in pkgutil.walk_packages(raypurify.__path__, "raypurify.")
        if not module.name.startswith("raypurify.distributed")
    ]
    assert "raypurify.training" in names
    assert loaded_by(*names) == ["torch"]


def test_tasks_that_read_load_no_torch() -> None:
    assert loaded_by("raypurify.distributed.stream", "raypurify.distributed.blocks") == ["ray"]


def test_a_first_look_at_images_loads_no_torch() -> None:
    assert loaded_by("raypurify.cleaning.quarantine") == []
