"""The command: its page, its verbs, and what it says of words that it does not know."""

import shlex
import subprocess
import sys
from typing import Any

import pytest

from raypurify.command import jobs, main
from raypurify.runs import cli
from raypurify.training.config import DIGIT_ATTACKS, PHOTOGRAPH_ATTACKS

COMMAND = "import sys; from raypurify.command.main import main; main()"
IMPORTED = (
    "; print(*(name for name in ('ray', 'torch', 'tyro', 'pyarrow', 'matplotlib') if name in sys.modules), sep='\\n')"
)


def command(*words: str, script: str = COMMAND) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", script, *words], capture_output=True, text=True, check=False)


def test_the_page_has_an_example_of_each_verb_and_comes_at_once() -> None:
    done = command("--help", script=COMMAND + IMPORTED)
    assert done.returncode == 0, done.stderr
    page, _, imported = done.stdout.partition("give the same command to go on.\n")
    assert imported == "\n"
    for name, verb in main.VERBS.items():
        assert f"  {name}\n" in page
        assert f"$ raypurify {verb.example}\n" in page


@pytest.mark.parametrize("name", main.VERBS)
def test_an_example_is_one_that_the_verb_takes(name: str) -> None:
    words = shlex.split(main.VERBS[name].example)
    assert main.verb_of(words) == (name, words[len(name.split()) :])
    default = jobs.of(name).default
    assert isinstance(cli.parse(default, words[len(name.split()) :]), type(default))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["evalute"], "there is no verb 'evalute'; did you mean evaluate?"),
        (["xyz"], "there is no verb 'xyz'. Verbs: demo, evaluate"),
        (["train"], "train: say what the images are: raypurify train digits or raypurify train photographs"),
        (["train", "--data", "mnist"], "train: say what the images are"),
        ([], "usage: raypurify VERB"),
    ],
)
def test_words_that_are_no_verb_are_refused(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main.verb_of(words)
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err


def test_a_verb_of_two_words_has_a_page(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main.verb_of(["train", "--help"])
    assert stopped.value.code == 0
    text = capsys.readouterr().out
    assert "train digits" in text
    assert "train photographs" in text
    assert "evaluate --" not in text


@pytest.mark.parametrize(
    ("job", "words", "missing"),
    [
        (jobs.evaluate(), ["--data", "digits"], "--classifiers"),
        (jobs.attack(), ["--input", "digits"], "--classifier"),
        (jobs.train("digits"), ["--data", "digits"], "--classifier"),
        (jobs.clean(), ["--input", "here", "--purifier", "identity"], "--output"),
    ],
)
def test_what_only_the_user_knows_is_asked_for(
    job: jobs.CommandLine, words: list[str], missing: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        job.run(words, prog="raypurify")
    assert stopped.value.code == 2
    assert missing in capsys.readouterr().err


@pytest.mark.parametrize(
    ("images", "attacks", "augmentation"),
    [("digits", DIGIT_ATTACKS, "none"), ("photographs", PHOTOGRAPH_ATTACKS, "flip_crop")],
)
def test_what_the_images_are_picks_a_trainings_defaults(
    images: Any, attacks: tuple[str, ...], augmentation: str
) -> None:
    words = ["--data", "d", "--classifier", "c"]
    training = cli.parse(jobs.train(images).default, words).training
    assert (training.model, training.attacks, training.augmentation) == ("cru_net", attacks, augmentation)
    assert cli.parse(jobs.train(images, model="b").default, words).training.model == "b"
    own = cli.parse(jobs.train(images).default, [*words, "--attacks", "fgsm", "--augmentation", "affine"]).training
    assert (own.attacks, own.augmentation) == (("fgsm",), "affine")


def test_the_package_is_the_command() -> None:
    words = [sys.executable, "-m", "raypurify.command", "evalute"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("error: there is no verb 'evalute'; did you mean evaluate?")


def test_a_shell_completes_verbs_and_flags() -> None:
    done = command("--tyro-print-completion", "bash")
    assert done.returncode == 0, done.stderr
    assert all(
        word in done.stdout for word in ("_raypurify", "evaluate", "photographs", "--adaptive-attacks", "--config")
    )
    assert "FLOAT" not in done.stdout, "a number may be a fraction"
    press = (
        "COMP_WORDS=(raypurify train digits --log); COMP_CWORD=3; _tyro_raypurify; printf '%s\\n' \"${COMPREPLY[@]}\""
    )
    found = subprocess.run(["bash"], input=f"{done.stdout}\n{press}\n", capture_output=True, text=True, check=True)
    assert found.stdout.split("\n") == ["--logger", "--log-format", "--logit-weight", ""]
