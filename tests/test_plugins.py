"""raypurify.plugins: names, dotted paths, and the errors of both, on real packages written to disk."""

from __future__ import annotations

import importlib
import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from raypurify.plugins import FAMILIES, Spec, build, decimal, find, known, readable, resolved
from raypurify.plugins.values import number

PLUGINS = {
    "__init__.py": "",
    "double.py": "def build(*, factor=2):\n    return lambda x: factor * x\n",
    "triple.py": "def build():\n    return lambda x: 3 * x\n",
    "_shared.py": "build = None\n",
    "_mismatched.py": 'raise RuntimeError("operator torchvision::nms does not exist")\n',
    "_failing.py": 'raise RuntimeError("out of order")\n',
    "broken.py": "import no_such_library_of_the_plugin\n",
    "makers.py": "LIMIT = 3\n\ndef make(*, factor):\n    return lambda x: factor * x\n",
}


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A package of plugins, under a name of its own, since Python keeps what it has imported."""
    name = f"plugins_of_{tmp_path.name}"
    (tmp_path / name).mkdir()
    for file, source in PLUGINS.items():
        (tmp_path / name / file).write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    return name


@pytest.mark.parametrize(
    ("text", "name", "params"),
    [
        ("pgd", "pgd", {}),
        ("pgd,epsilon=0.3,steps=40", "pgd", {"epsilon": 0.3, "steps": 40}),
        (" pgd , steps=40", "pgd", {"steps": 40}),
        ("pgd,random=false,norm=linf,target=null", "pgd", {"random": False, "norm": "linf", "target": None}),
        ("d_net,layers=[4,6,6],growth=12", "d_net", {"layers": [4, 6, 6], "growth": 12}),
        ('mine,version="3"', "mine", {"version": "3"}),
        ("pgd,epsilon=8/255,step_size=0.5 / 255", "pgd", {"epsilon": 8 / 255, "step_size": 0.5 / 255}),
        ('mine,path="8/255",day=1/2/3,url=data/255', "mine", {"path": "8/255", "day": "1/2/3", "url": "data/255"}),
        ("my_package.models:make,path=s3://bucket/a=b", "my_package.models:make", {"path": "s3://bucket/a=b"}),
    ],
)
def test_spec_parses_and_prints(text: str, name: str, params: dict[str, object]) -> None:
    spec = Spec.parse(text)
    assert spec == Spec(name=name, params=params)
    assert Spec.parse(str(spec)) == spec


@pytest.mark.parametrize(
    ("text", "wrong"),
    [("pgd,steps", "'steps'"), ("pgd,=3", "'=3'"), ("pgd, =3", "' =3'"), ("", "empty"), (",a=1", "empty")],
)
def test_spec_refuses_what_it_cannot_read(text: str, wrong: str) -> None:
    with pytest.raises(ValueError, match=f"expected NAME.*{wrong}"):
        Spec.parse(text)


def test_a_file_is_a_plugin(package: str) -> None:
    assert known(package) == ["broken", "double", "makers", "triple"]
    assert build(package, Spec(name="triple"))(5) == 15
    assert build(package, Spec.parse("double,factor=7"))(5) == 35


def test_an_unknown_name_lists_the_known_ones(package: str) -> None:
    for name in ("quadruple", "_shared", "double.build"):
        with pytest.raises(ValueError, match=f"unknown name '{name}'.*broken, double, makers, triple.*module:callable"):
            find(package, name)


def test_a_family_is_a_file_that_stands_for_many_plugins(package: str, tmp_path: Path) -> None:
    source = "def build_named(name):\n    return lambda *, factor=2: lambda x: f'{name} {factor * x}'\n"
    (tmp_path / package / f"{FAMILIES[0]}.py").write_text(source)
    importlib.invalidate_caches()
    assert build(package, Spec.parse(f"{FAMILIES[0]}.PGD,factor=3"))(5) == "PGD 15"
    assert FAMILIES[0] not in known(package)
    for name in (FAMILIES[0], "double.PGD"):
        with pytest.raises(ValueError, match=f"unknown name '{name}'.*makers, {FAMILIES[0]}.NAME, triple"):
            find(package, name)


def test_a_dotted_path_names_a_callable_of_the_users_own(package: str) -> None:
    spec = Spec.parse(f"{package}.makers:make,factor=4")
    assert build("raypurify.purifiers", spec)(5) == 20


def test_a_dotted_path_to_nothing_says_what_is_missing(package: str) -> None:
    with pytest.raises(ValueError, match=r"no module 'no_such_package'.*PYTHONPATH"):
        find(package, "no_such_package.models:make")
    for attribute in ("absent", "LIMIT", ""):
        with pytest.raises(ValueError, match=rf"{package}\.makers' has no callable '{attribute}'"):
            find(package, f"{package}.makers:{attribute}")
    with pytest.raises(ModuleNotFoundError, match=rf"{package}\.absent"):
        find(package, f"{package}.absent:make")


def test_an_import_error_inside_a_plugin_is_shown_as_it_is(package: str) -> None:
    for name in ("broken", f"{package}.broken:build"):
        with pytest.raises(ModuleNotFoundError, match="No module named 'no_such_library_of_the_plugin'"):
            find(package, name)
    with pytest.raises(ModuleNotFoundError, match=rf"^'{package}\.broken:build' cannot be imported: No module"):
        find(package, name)


def test_an_import_that_ends_at_another_build_of_torch_is_told(package: str) -> None:
    with pytest.raises(ImportError, match=r"mismatched:build' cannot be imported: operator torchvision::nms .*pytorch"):
        find(package, f"{package}._mismatched:build")
    with pytest.raises(RuntimeError, match=r"^out of order$"):
        find(package, f"{package}._failing:build")


def test_parameters_that_a_plugin_does_not_take_are_named(package: str) -> None:
    with pytest.raises(ValueError, match=r"double,power=3:.*power"):
        build(package, Spec.parse("double,power=3"))
    with pytest.raises(ValueError, match=r"makers:make: factor must be given, as .*makers:make,factor=\.\.\.$"):
        build(package, Spec(name=f"{package}.makers:make"))


@pytest.mark.parametrize(
    ("package", "text", "message"),
    [
        ("attacks", "fgsm,eps=8/255", "fgsm,eps=8/255: fgsm has no parameter ['eps']; it takes ['epsilon', 'labels']"),
        (
            "attacks",
            "fgsm,epsilom=1",
            "no parameter ['epsilom']; it takes ['epsilon', 'labels']; did you mean epsilon?",
        ),
        ("attacks", "pgd,epsilon=big", "pgd,epsilon=big: epsilon: expected a number; got 'big' (text)"),
        ("attacks", "pgd,epsilon=", "epsilon: expected a number; got '' (text)"),
        ("attacks", "pgd,steps=2.5", "steps: expected a whole number; got 2.5 (a number)"),
        ("attacks", "pgd,step_size=[1]", "step_size: expected a number or null; got [1] (a list)"),
        ("attacks", "torchattacks.PGD,epsilon=1", "torchattacks.PGD has no parameter ['epsilon']; it takes ["),
        ("classifiers", "d_net,layers=[1,x]", "d_net,layers=[1,x]: layers: expected a list, each item a whole number"),
        ("classifiers", "d_net,groth=3", "d_net has no parameter ['groth']; it takes ["),
        ("training.pairs", "attacked", "attacked: url must be given, as attacked,url=..."),
    ],
)
def test_parameters_of_other_names_and_types_are_refused(package: str, text: str, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        build(f"raypurify.{package}", Spec.parse(text))


def test_a_name_means_the_same_in_a_fresh_process(package: str) -> None:
    source = (
        "import json, sys\nfrom raypurify.plugins import Spec, build, known\n"
        "print(json.dumps([known(sys.argv[1]), build(sys.argv[1], Spec.parse('double,factor=7'))(5)]))"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    run = subprocess.run(
        [sys.executable, "-c", source, package], env=environment, capture_output=True, text=True, check=True
    )
    assert json.loads(run.stdout) == [known(package), 35]


@pytest.mark.parametrize(("text", "value"), [("8/255", 8 / 255), ("0.3", 0.3), ("3e-1", 0.3), ("-1/2", -0.5)])
def test_a_number_is_read_as_people_write_it(text: str, value: float) -> None:
    assert number(text) == value


@pytest.mark.parametrize("text", ["8/0", "8/", "/255", "fast", "1/2/3", ""])
def test_what_is_no_number_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=re.escape(f"{text!r} is no number")):
        number(text)
    with pytest.raises(ValueError, match="'8/0' is no number"):
        Spec.parse("pgd,epsilon=8/0")


def test_a_fraction_and_its_decimal_read_alike() -> None:
    written = "pgd,epsilon=8/255,steps=5"
    assert decimal(written) == "pgd,epsilon=0.03137254901960784,steps=5"
    assert readable(decimal(written)) == written
    assert str(Spec.parse(written)) == str(Spec.parse(decimal(written)))
    assert readable(f"gaussian_noise,sigma={16 / 255}+a_net") == "gaussian_noise,sigma=16/255+a_net"
    for text in ("pgd,epsilon=0.3,steps=40", "runs/1/2", "attacked,url=runs/8/images", "mine,sizes=[0.1,0.2]"):
        assert decimal(text) == readable(text) == text


@dataclass(frozen=True, kw_only=True)
class Bent:
    radius: float = 0.3
    sizes: tuple[float, ...] = (1, 2)


def test_what_means_the_same_has_one_text() -> None:
    def text(written: str) -> str:
        spec = Spec.parse(written)
        return str(resolved(spec, Bent(**spec.params)))

    assert text("bent") == text("bent,sizes=[1.0,2.0],radius=0.3") == "bent,radius=0.3,sizes=[1,2]"
    assert text("bent,radius=1") == text("bent,radius=1.0")
    assert text("bent,radius=1") != text("bent,radius=2")
    assert str(resolved(Spec.parse("own:make,b=2.0,a=true"), object())) == "own:make,a=true,b=2"
