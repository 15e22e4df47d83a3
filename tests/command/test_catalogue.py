"""``raypurify plugins``: each plugin's name, parameters, docs and source."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

from raypurify import plugins
from raypurify.attacks import torchattacks
from raypurify.command.catalogue import METRIC_KIND, PACKAGES, PluginsArguments, known, main, named


@pytest.mark.parametrize("kind", [*PACKAGES, METRIC_KIND])
def test_each_plugin_has_docs_and_a_source(kind: str) -> None:
    found = list(known(kind))
    assert len(found) > (1 if kind == "loggers" else 3)
    for plugin in found:
        assert plugin.docs[0].strip() not in ("", "(not described)"), plugin.name
        assert Path(plugin.file).is_file(), plugin.name


@pytest.mark.parametrize(
    ("name", "parameters", "doc"),
    [
        (
            "pgd",
            {"epsilon=0.3", "steps=40", "step_size=null", "random_start=true"},
            "How many gradient steps each start takes.",
        ),
        ("torchattacks.PGD", {"eps=8/255", "alpha=2/255", "steps=10"}, "number of steps"),
        ("jpeg", {"quality=75"}, "the JPEG quality"),
        ("d_net", {"growth=16", "layers=[6,8,8]"}, "Maps that each layer adds."),
        ("attacked", {"url", "split=train"}, "The split of the attacked datasets that is read."),
    ],
)
def test_a_plugins_parameters_are_told_with_their_defaults_and_docs(name: str, parameters: set[str], doc: str) -> None:
    (plugin,) = named(name)
    assert parameters <= set(map(str, plugin.parameters))
    assert any(doc in parameter.doc for parameter in plugin.parameters)


def test_the_list_has_every_name(capsys: pytest.CaptureFixture[str]) -> None:
    main(PluginsArguments())
    text = capsys.readouterr().out
    for name in ("pgd", "torchattacks.AutoAttack", "cru_net", "a_net", "adaptive", "parquet", "ssim"):
        assert f"  {name} " in text
    assert "epsilon=0.3, steps=40" in text
    assert "`" not in text, "marks of code are for who reads the source"


def test_one_plugin_is_told_in_full(capsys: pytest.CaptureFixture[str]) -> None:
    main(PluginsArguments(name="pgd"))
    text = capsys.readouterr().out
    assert "Each image's best iterate is returned" in text
    assert "epsilon=0.3\n      Radius of the L-infinity ball" in text
    assert str(Path("attacks/pgd.py")) in text


def test_a_users_own_is_told_by_its_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_plugins.py").write_text('def blur(*, sigma=0.5):\n    """Blurs."""\n')
    monkeypatch.syspath_prepend(tmp_path)
    (plugin,) = named("own_plugins:blur")
    assert (plugin.docs, [*map(str, plugin.parameters)]) == (("Blurs.",), ["sigma=0.5"])


@pytest.mark.parametrize(
    ("name", "message"),
    [("pgdd", "did you mean pgd?"), ("qqqq", "there is no plugin 'qqqq'."), ("no_module:x", "no module 'no_module'")],
)
def test_an_unknown_name_is_refused_with_the_nearest(name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        named(name)


def test_no_ray_is_loaded() -> None:
    script = "import sys; from raypurify.command.main import main; main(); assert 'ray' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", script, "plugins", "noise"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_without_torchattacks_its_attacks_are_not_listed_and_a_name_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "torchattacks" else find(name))
    names = [plugin.name for plugin in known("attacks")]
    assert "pgd" in names
    assert not any(name.startswith("torchattacks") for name in names)
    torchattacks.build_named.cache_clear()
    for name in ("torchattacks.PGD", "torchattacks.PGD,eps=0.3"):
        with pytest.raises(ImportError, match=r"pip install 'raypurify\[torchattacks\]'"):
            plugins.build("raypurify.attacks", plugins.Spec.parse(name))
