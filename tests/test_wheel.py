"""The wheel as a user installs it: nothing is missing that a checkout has, and the command runs."""

import os
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from the checkout."""
    folder = tmp_path_factory.mktemp("wheel")
    words = ["wheel", "--quiet", "--no-deps", "--wheel-dir", str(folder), str(ROOT)]
    subprocess.run([sys.executable, "-m", "pip", *words], check=True)
    (built,) = folder.glob("raypurify-*.whl")
    return built


@pytest.mark.slow
def test_the_wheel_holds_all_that_is_no_python_and_nothing_but_the_package(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    package = ROOT / "raypurify"
    kinds = (".j2", ".css", ".typed", ".txt", ".json", ".safetensors")
    beside = {str(path.relative_to(ROOT)) for path in package.rglob("*") if path.suffix in kinds}
    assert {"raypurify/py.typed", "raypurify/report/page.html.j2"} <= beside
    assert any(name.endswith(".css") for name in beside)
    assert beside <= set(names)
    assert {name.partition("/")[0] for name in names if ".dist-info/" not in name} == {"raypurify"}


@pytest.mark.slow
def test_the_command_runs_from_an_installed_wheel(wheel: Path, tmp_path: Path) -> None:
    venv.create(tmp_path / "venv", with_pip=False)
    python = tmp_path / "venv/bin/python"
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}

    def said(*words: str | Path) -> str:
        done = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
        return done.stdout

    place = Path(said(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip())
    # What raypurify stands on is there already. A path in a .pth file brings no .pth files of its own, so no checkout.
    (place / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--no-deps", str(wheel)]
    subprocess.run(pip, check=True)
    assert said(python, "-c", "import raypurify; print(raypurify.__file__)").startswith(str(place))
    command = tmp_path / "venv/bin/raypurify"
    assert "$ raypurify demo" in said(command, "--help")
    assert "torchattacks.AutoAttack" in said(command, "plugins")
    assert "--classifiers" in said(command, "evaluate", "--help")
    loaded = "import raypurify; print(type(raypurify.load('weights/photos/cru_net')).__name__)"
    assert said(python, "-c", loaded) == "CRUNet\n"
