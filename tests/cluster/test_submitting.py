"""The commands of cluster/README.md, what travels with a job, and the image: at the versions that are pinned."""

import re
import shutil
import subprocess
import zipfile
from pathlib import Path

import pytest
import yaml
from job_lines import ROOT, parsed
from ray._private.runtime_env.packaging import create_package
from ray.runtime_env import RuntimeEnv

import raypurify

README = (ROOT / "cluster/README.md").read_text()
DOCKERFILE = (ROOT / "cluster/Dockerfile").read_text()
PINNED = dict(re.findall(r"^([\w-]+)==(\S+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE))


def commands() -> list[str]:
    """Lines of the README's blocks of shell commands, with their continuations."""
    blocks = re.findall(r"^```sh\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
    return [line.partition("  #")[0].strip() for block in blocks for line in re.sub(r"\\\n\s*", "", block).splitlines()]


JOBS = [line[found.start() :] for line in commands() if (found := re.search(r"python (/opt/raypurify/)?jobs/", line))]
RAYJOBS = sorted((ROOT / "cluster/kuberay/jobs").glob("*/rayjob.yaml"))
ENTRYPOINTS = [yaml.safe_load(path.read_text())["spec"]["entrypoint"] for path in RAYJOBS]


@pytest.mark.parametrize("line", [*JOBS, *ENTRYPOINTS])
def test_every_job_of_the_readme_and_of_kubernetes_is_understood(line: str) -> None:
    parsed(line)


@pytest.mark.parametrize("line", [line for line in (*JOBS, *ENTRYPOINTS) if "jobs/train_" in line])
def test_a_training_can_use_every_number_of_workers_that_it_may_get(line: str) -> None:
    arguments = parsed(line)
    assert not [number for number in arguments.resources.numbers if arguments.training.batch % number]


def test_the_readme_has_each_job() -> None:
    named = {re.search(r"jobs/(\w+)\.py", line)[1] for line in JOBS}  # type: ignore[index]
    assert named == {path.stem for path in (ROOT / "jobs").glob("*.py")} - {"demo"}


def test_files_that_the_readme_names_are_there() -> None:
    named = {word for line in commands() for word in line.split() if word.startswith("cluster/")}
    assert named
    assert not [name for name in named if not (ROOT / name).exists()]


def test_no_command_has_a_secret() -> None:
    assert not re.search(r"AKIA|aws_secret|--.*(password|secret)\s+\S", README, re.IGNORECASE)
    for line in commands():
        assert "AWS_" not in line


@pytest.mark.parametrize("tool", ["pip", "uv"])
def test_a_runtime_environment_is_one_and_holds_to_what_is_pinned(tool: str) -> None:
    written = yaml.safe_load((ROOT / f"cluster/runtime-env-{tool}.yaml").read_text())
    environment = RuntimeEnv(**written)
    assert "env_vars" not in environment
    constraint, project = environment[tool]["packages"]
    assert constraint == "--constraint=${RAY_RUNTIME_ENV_CREATE_WORKING_DIR}/constraints.txt"
    assert project == "raypurify[s3] @ file://${RAY_RUNTIME_ENV_CREATE_WORKING_DIR}"


def test_what_travels_is_what_a_job_needs(tmp_path: Path) -> None:
    tree = tmp_path / "checkout"
    kept = ["raypurify/__init__.py", "jobs/evaluate.py", "weights/mnist/model.safetensors", "pyproject.toml"]
    left = ["runs/evaluate/scores.parquet", "tests/test_x.py", ".venv/bin/python", ".git/index", ".mypy_cache/x.json"]
    left += [
        "raypurify/__pycache__/x.pyc",
        "docs/stadv.png",
        "results/x.csv",
        "benchmarks/x.py",
        "cluster/aws.yaml",
        "dist/x.whl",
    ]
    for name in (*kept, *left):
        path = tree / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("content")
    for name in (".gitignore", ".rayignore"):
        shutil.copy(ROOT / name, tree)
    create_package(str(tree), tmp_path / "package.zip", include_gitignore=True, excludes=[".git", ".venv"])
    names = {name for name in zipfile.ZipFile(tmp_path / "package.zip").namelist() if not name.endswith("/")}
    assert names == {*kept, ".gitignore", ".rayignore"}


def test_versions_are_those_that_are_pinned() -> None:
    (python,) = re.findall(r'^python_version = "(.*)"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    ray = PINNED["ray"]
    assert f"RAY_IMAGE=rayproject/ray:{ray}-py{python.replace('.', '')}-cpu\n" in DOCKERFILE
    (cluster,) = yaml.safe_load_all((ROOT / "cluster/kuberay/base/raycluster.yaml").read_text())
    assert cluster["spec"]["rayVersion"] == ray
    assert f"Ray {ray}, Python {python}" in README
    assert f"ray[default]=={ray}" in README
    assert f"Ray {ray} on Python {python}" in (ROOT / "cluster/runtime-env-pip.yaml").read_text()
    for path in (ROOT / "cluster").rglob("*"):
        if path.is_file():
            text = path.read_text()
            assert {ray} >= set(re.findall(r"\bray(?:\[\w+\])?[:=]=?(\d+\.\d+\.\d+)", text)), path
            assert {raypurify.__version__} >= set(re.findall(r"raypurify:(\d\S*?)-(?:cpu|cuda)", text)), path
    assert {"torch", "ray"} <= set(PINNED)


def stages() -> dict[str, list[str]]:
    """The instructions of each stage of the Dockerfile, by its name."""
    found: dict[str, list[str]] = {}
    lines = [line for line in DOCKERFILE.splitlines() if line and not line.startswith("#")]
    for line in re.sub(r"\\\n\s*", "", "\n".join(lines)).splitlines():
        if start := re.fullmatch(r"FROM \$\{RAY_IMAGE\} AS (\w+)", line):
            found[start[1]] = []
        elif found:
            found[list(found)[-1]].append(line)
    return found


@pytest.mark.parametrize("target", ["cpu", "cuda"])
def test_an_image_is_pinned_small_and_not_roots(target: str) -> None:
    instructions = stages()[target]
    installs = [line for line in instructions if "pip install" in line]
    for line in installs:
        for command in line.split("pip install")[1:]:
            assert "--no-cache-dir" in command
            assert "--constraint /tmp/constraints.txt" in command or "--no-deps" in command
    assert [line for line in instructions if line.startswith("USER")] == ["USER 1000"]
    assert sum(line.startswith("HEALTHCHECK") for line in instructions) == 1
    copies = [line.split()[1:-1] for line in instructions if line.startswith("COPY")]
    assert ["raypurify"] not in copies  # it comes as a wheel
    torch = next(line for line in installs if line.endswith("torch torchvision"))
    assert ("whl/cpu" in torch) == (target == "cpu")


def test_the_targets_differ_in_pytorch_alone() -> None:
    cpu, cuda = ([line for line in stages()[name] if "torch torchvision" not in line] for name in ("cpu", "cuda"))
    assert [line for line in cuda if not line.startswith("ENV NVIDIA_")] == cpu


def test_all_that_the_image_copies_is_let_through_and_nothing_else() -> None:
    words = [line.split()[1:] for lines in stages().values() for line in lines if line.startswith("COPY")]
    copied = {name for names in words for name in names[:-1] if not name.startswith("--")}
    rules = (ROOT / ".dockerignore").read_text().splitlines()
    assert copied == {rule[1:] for rule in rules if rule.startswith("!")}
    assert all((ROOT / name).exists() for name in copied)
    assert "*" in rules


@pytest.mark.skipif(shutil.which("hadolint") is None, reason="hadolint is not here")
def test_hadolint_has_nothing_to_say() -> None:
    subprocess.run(["hadolint", str(ROOT / "cluster/Dockerfile")], check=True)
