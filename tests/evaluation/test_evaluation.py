import dataclasses
import json
import pickle
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pytest
import torch
from skimage.metrics import peak_signal_noise_ratio

from raypurify.classifiers import a_net
from raypurify.evaluation import preflight
from raypurify.evaluation.batch import Evaluator
from raypurify.evaluation.grid import EvaluationConfig, Grid, build_grid, built_metrics, left_out
from raypurify.models import give_name, load
from raypurify.purifiers import cru_net
from raypurify.runs import schema
from raypurify.storage import checkpoints

SIZE = 12
ROWS = 6


def classifier(folder: Path, seed: int) -> str:
    torch.manual_seed(seed)
    config = {"kind": "classifier", "plugin": "a_net", "params": {"image_size": SIZE}}
    checkpoints.save(str(folder), config, a_net.build(image_size=SIZE).state_dict())
    return str(folder)


def purifier(folder: Path, victim: str) -> str:
    torch.manual_seed(5)
    network = cru_net.build(width=2)
    torch.nn.init.normal_(network.output.weight, std=0.1)
    trained_for = {"classifier": "x", "sha256": load("classifier", victim).sha256}
    config = {"kind": "purifier", "plugin": "cru_net", "params": {"width": 2}, "trained_for": trained_for}
    checkpoints.save(str(folder), config, network.state_dict())
    return str(folder)


@pytest.fixture
def networks(tmp_path: Path) -> dict[str, str]:
    one, two = classifier(tmp_path / "one", 1), classifier(tmp_path / "two", 2)
    return {"one": one, "two": two, "pure-one": purifier(tmp_path / "pure-one", one)}


def grid_of(networks: dict[str, str], **changes: object) -> EvaluationConfig:
    values: dict[str, object] = {
        "data": "digits",
        "classifiers": (networks["one"], networks["two"]),
        "purifiers": (networks["pure-one"], "threshold"),
        "attacks": ("fgsm,epsilon=0.1", "pgd,epsilon=0.1,steps=3"),
        "settings": ("white-box", "black-box", "adaptive"),
    }
    return EvaluationConfig(**{**values, **changes})  # type: ignore[arg-type]


def cells(config: EvaluationConfig) -> list[tuple[str, ...]]:
    names = ("setting", "attack", "victim", "classifier", "purifier")
    return [tuple(cell.row[name] for name in names) for cell in build_grid(config, "digits", ROWS).cells]


def test_the_grid_pairs_classifiers_with_their_own_purifiers(networks: dict[str, str]) -> None:
    found = cells(grid_of(networks, attacks=("fgsm",)))
    assert sorted(found) == sorted(
        [
            ("white-box", "fgsm", "one", "one", "pure-one"),
            ("white-box", "fgsm", "one", "one", "threshold"),
            ("white-box", "fgsm", "two", "two", "threshold"),
            ("black-box", "fgsm", "two", "two", "pure-one"),
            ("adaptive", "fgsm", "pure-one+one", "one", "pure-one"),
            ("adaptive", "fgsm", "threshold+one", "one", "threshold"),
            ("adaptive", "fgsm", "threshold+two", "two", "threshold"),
        ]
    )


def test_attacked_images_are_made_once_for_all_purifiers(networks: dict[str, str]) -> None:
    grid = build_grid(grid_of(networks, settings=("white-box", "black-box")), "digits", ROWS)
    assert [(group.attack.name, group.victim, len(group.cells)) for group in grid.groups] == [
        ("fgsm", 0, 2),
        ("pgd", 0, 2),
        ("fgsm", 1, 2),
        ("pgd", 1, 2),
    ]


@pytest.mark.parametrize("parts", [1, 2, 3, 5, 8, 15, 40])
def test_cells_are_dealt_evenly_and_no_image_is_attacked_twice(parts: int, networks: dict[str, str]) -> None:
    grid = build_grid(grid_of(networks, attacks=("fgsm", "pgd", "deepfool")), "digits", ROWS)
    wanted = frozenset(cell.hash for cell in grid.cells) - {grid.groups[0].cells[0].hash}
    dealt = grid.dealt(wanted, parts)
    assert sorted(name for own in dealt for name in own) == sorted(wanted)
    parts_of = [{part for part, own in enumerate(dealt) if own & group.hashes} for group in grid.groups]
    assert all(len(found) == 1 for found in parts_of)
    groups = [sum(found == {part} for found in parts_of) for part in range(len(dealt))]
    assert len(dealt) == min(parts, len(grid.groups))
    assert max(groups) - min(groups) <= 1
    checks = {
        (group.victim, group.known_purifier, *found)
        for group, found in zip(grid.groups, parts_of, strict=True)
        if group.known_purifier is not None
    }
    assert len(checks) <= 3 + len(dealt) - 1, "three adaptive victims, each checked in as few parts as can be"


def test_the_adaptive_setting_can_be_narrowed(networks: dict[str, str]) -> None:
    narrow = {"adaptive_attacks": ("pgd,steps=2",), "adaptive_purifiers": (networks["pure-one"],)}
    found = cells(grid_of(networks, settings=("adaptive",), **narrow))
    assert found == [
        ("adaptive", "pgd", "pure-one+one", "one", "pure-one"),
        ("adaptive", "pgd", "pure-one+two", "two", "pure-one"),
    ], "a purifier that is named is attacked before every classifier"


def test_a_purifier_that_no_cell_has_is_told_of(networks: dict[str, str]) -> None:
    def built(**changes: object) -> Grid:
        return build_grid(grid_of(networks, **changes), "digits", ROWS)

    alone = {"classifiers": (networks["two"],), "purifiers": ("identity", networks["pure-one"])}
    (told,) = left_out(built(settings=("white-box",), **alone))
    assert told == "pure-one was trained for another classifier, and is left out; --settings black-box evaluates it"
    (told,) = left_out(built(settings=("black-box", "adaptive"), **alone))
    assert told.endswith("has no adaptive figure; --adaptive-purifiers names it")
    named = {**alone, "adaptive_purifiers": (networks["pure-one"],)}
    (told,) = left_out(built(settings=("black-box", "adaptive"), **named))
    assert told == "identity was trained for no classifier, and is left out; --settings white-box evaluates it"
    assert not left_out(built(settings=("white-box", "black-box", "adaptive"), **named))
    with pytest.raises(ValueError, match="needs --settings black-box, or, for adaptive, --adaptive-purifiers"):
        built(settings=("white-box",), **{**alone, "purifiers": (networks["pure-one"],)})


@pytest.mark.parametrize(
    ("attack", "digest"),
    [
        ("fgsm,epsilon=0.3", "69bc86c351cdcab1"),
        ("pgd,epsilon=0.031373,steps=5,step_size=0.01", "91ea54e7582dd48a"),
        ("torchattacks.PGD,eps=0.3", "4532c2fa2c6c2eb3"),
    ],
)
def test_the_cells_of_earlier_runs_keep_their_hashes(attack: str, digest: str) -> None:
    weights = str(Path(__file__).parents[2] / "weights/mnist/a_net")
    config = EvaluationConfig(
        data="mnist", classifiers=(weights,), purifiers=("gaussian_noise,sigma=0.1",), attacks=(attack,)
    )
    (cell,) = build_grid(config, "mnist", 100, 250).cells
    assert cell.hash == digest


def test_a_fraction_and_its_decimal_are_one_cell(networks: dict[str, str]) -> None:
    def hashes(**changes: object) -> set[str]:
        return {cell.hash for cell in build_grid(grid_of(networks, **changes), "digits", ROWS).cells}

    ways = [
        {"attacks": ("pgd,epsilon=8/255,step_size=2/255",), "purifiers": ("gaussian_noise,sigma=16/255",)},
        {
            "attacks": (f"pgd,epsilon={8 / 255},step_size={2 / 255}",),
            "purifiers": (f"gaussian_noise,sigma={16 / 255}",),
        },
        {
            "attacks": ("pgd,step_size=2/255",),
            "epsilons": (8 / 255,),
            "purifiers": (f"gaussian_noise,sigma={16 / 255}",),
        },
    ]
    assert hashes(**ways[0]) == hashes(**ways[1]) == hashes(**ways[2])


def test_a_cells_hash_follows_what_it_computes(networks: dict[str, str], tmp_path: Path) -> None:
    def hashes(**changes: object) -> set[str]:
        return {cell.hash for cell in build_grid(grid_of(networks, **changes), "digits", ROWS).cells}

    assert hashes() == hashes()
    assert not hashes() & hashes(seed=1)
    assert not hashes(attacks=("fgsm,epsilon=0.1",)) & hashes(attacks=("fgsm,epsilon=0.2",))
    before = hashes()
    classifier(tmp_path / "one", 9)
    assert before != hashes()


def test_an_attack_is_one_cell_and_one_set_of_images_however_it_is_written(networks: dict[str, str]) -> None:
    def scored(attack: str, purifier: str, setting: str) -> tuple[str, torch.Tensor]:
        changes = {"attacks": (attack,), "purifiers": (purifier,), "settings": (setting,), "masking_images": 0}
        grid = build_grid(grid_of(networks, classifiers=(networks["one"],), **changes), "digits", ROWS)
        (found,) = Evaluator(grid, "cpu").evaluate(*batch())
        return found.cell.hash, found.x_adv

    for purifier, setting in (("identity", "white-box"), ("gaussian_noise", "adaptive")):
        for one, other in (
            ("pgd", "pgd,epsilon=0.3,steps=40"),
            ("pgd,steps=2,epsilon=0.1", "pgd,epsilon=0.1,steps=2"),
            ("r_fgsm,epsilon=1", "r_fgsm,epsilon=1.0"),
        ):
            (hash_one, x_one), (hash_other, x_other) = (scored(text, purifier, setting) for text in (one, other))
            assert hash_one == hash_other
            assert torch.equal(x_one, x_other)


def test_an_adaptive_cell_is_one_of_its_check(networks: dict[str, str]) -> None:
    def hashes(setting: str, images: int) -> set[str]:
        changes = {"settings": (setting,), "masking_images": images}
        return {cell.hash for cell in build_grid(grid_of(networks, **changes), "digits", 100).cells}

    assert not hashes("adaptive", 0) & hashes("adaptive", 20)
    assert hashes("adaptive", 100) == hashes("adaptive", 200), "of 100 images all are checked"
    assert hashes("white-box", 0) == hashes("white-box", 20)


def test_a_stand_in_is_of_the_cells_that_it_touches(networks: dict[str, str]) -> None:
    def hashes(purifier: str, bpda: str) -> set[str]:
        changes = {"purifiers": (purifier,), "bpda": bpda, "settings": ("adaptive",), "attacks": ("fgsm",)}
        return {cell.hash for cell in build_grid(grid_of(networks, **changes), "digits", ROWS).cells}

    for purifier in (networks["pure-one"], "gaussian_noise"):
        assert hashes(purifier, "identity") == hashes(purifier, "mean_filter") == hashes(purifier, "none")
    assert len(hashes("rounding", "identity") | hashes("rounding", "mean_filter") | hashes("rounding", "none")) == 6


def test_the_check_for_masking_is_the_same_for_whichever_attack_it_was_made(networks: dict[str, str]) -> None:
    changes = {"attacks": ("fgsm,epsilon=0.1", "pgd,epsilon=0.1,steps=2"), "settings": ("adaptive",)}
    noisy = {"purifiers": ("gaussian_noise,sigma=1",), "eot": 1}
    config = grid_of(networks, classifiers=(networks["one"],), **noisy, **changes)
    grid = build_grid(config, "digits", ROWS)
    evaluator = Evaluator(grid, "cpu")
    torch.manual_seed(0)
    evaluator.classifiers = [torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(SIZE * SIZE, 10, bias=False))]
    _, second = evaluator.evaluate(*batch())
    (resumed,) = evaluator.evaluate(*batch(), {second.cell.hash})
    assert resumed.scores.equals(second.scores)


def test_only_attacks_that_couple_a_batch_depend_on_its_size(networks: dict[str, str]) -> None:
    def hashes(batch: int, attack: str) -> set[str]:
        changes = {"attacks": (attack,), "settings": ("white-box",)}
        return {cell.hash for cell in build_grid(grid_of(networks, **changes), "digits", ROWS, batch).cells}

    assert hashes(10, "fgsm") == hashes(20, "fgsm")
    assert not hashes(10, "torchattacks.FGSM") & hashes(20, "torchattacks.FGSM")


def test_bad_grids_are_refused(networks: dict[str, str]) -> None:
    with pytest.raises(ValueError, match="no cell"):
        build_grid(grid_of(networks, purifiers=("identity",), settings=("black-box",)), "digits", ROWS)
    with pytest.raises(ValueError, match="two models are called"):
        build_grid(grid_of(networks, classifiers=(networks["one"], networks["one"])), "digits", ROWS)
    with pytest.raises(ValueError, match="one twice"):
        build_grid(grid_of(networks, attacks=("fgsm", "fgsm,epsilon=0.3")), "digits", ROWS)
    with pytest.raises(ValueError, match="adaptive_purifiers must be among"):
        grid_of(networks, adaptive_purifiers=("jpeg",))
    with pytest.raises(ValueError, match="grey-box"):
        grid_of(networks, settings=("grey-box",))
    with pytest.raises(ValueError, match="eot and draws must be at least 1"):
        grid_of(networks, eot=0)
    with pytest.raises(ValueError, match="attacks must name"):
        grid_of(networks, attacks=())
    with pytest.raises(ValueError, match="bpda: 'gaussian_noise' draws at random"):
        build_grid(grid_of(networks, bpda="gaussian_noise"), "digits", ROWS)
    with pytest.raises(ValueError, match="bpda: 'jpeg' has no gradient"):
        build_grid(grid_of(networks, bpda="jpeg"), "digits", ROWS)


def test_one_batch_is_scored_in_every_cell(networks: dict[str, str]) -> None:
    grid = build_grid(grid_of(networks), "digits", ROWS)
    evaluator = Evaluator(grid, "cpu")
    x, y, ids = batch()
    results = {scored.cell.hash: scored for scored in evaluator.evaluate(x, y, ids)}
    assert set(results) == {cell.hash for cell in grid.cells}
    for cell in grid.cells:
        scored = results[cell.hash]
        assert scored.scores.schema == schema.SCORES
        network = load("classifier", grid_of(networks).classifiers[cell.classifier]).build()
        pure = load("purifier", grid_of(networks).purifiers[cell.purifier]).build()
        columns = {name: scored.scores[name].to_pylist() for name in schema.SCORES.names}
        assert columns["id"] == ids
        assert columns["pred_clean"] == network(x).argmax(1).tolist()
        assert columns["pred_adversarial"] == network(scored.x_adv).argmax(1).tolist()
        assert columns["pred_purified"] == network(pure(scored.x_adv)).argmax(1).tolist()
        assert columns["pred_clean_purified"] == network(pure(x)).argmax(1).tolist()
        assert max(columns["linf"]) <= 0.1 + 1e-6
        oracle = peak_signal_noise_ratio(x[2].numpy(), scored.x_pure[2].numpy(), data_range=1)
        assert columns["psnr_purified"][2] == pytest.approx(oracle, abs=1e-3)
        assert json.loads(str(cell.row["params"]))["epsilon"] == 0.1


class Nothing(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * torch.nan


def test_a_purifier_that_makes_no_numbers_is_named(networks: dict[str, str]) -> None:
    name = give_name(Nothing())
    config = grid_of(networks, purifiers=(name,), settings=("white-box",))
    with pytest.raises(ValueError, match=f"{name} made pixels that are no finite numbers"):
        list(Evaluator(build_grid(config, "digits", ROWS), "cpu").evaluate(*batch()))


def test_small_images_have_no_ssim(networks: dict[str, str]) -> None:
    grid = build_grid(grid_of(networks, classifiers=(networks["one"],), settings=("white-box",)), "digits", ROWS)
    evaluator = Evaluator(grid, "cpu")
    evaluator.classifiers = [torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))]
    scored = next(evaluator.evaluate(torch.rand(2, 1, 8, 8), torch.tensor([1, 2]), ["a", "b"]))
    assert scored.scores["ssim_purified"].null_count == 2
    assert pa.types.is_float32(scored.scores["ssim_purified"].type)


def test_transfer_sends_each_classifiers_images_to_the_others(networks: dict[str, str]) -> None:
    grid = build_grid(grid_of(networks, attacks=("fgsm",), settings=("white-box", "transfer")), "digits", ROWS)
    found = [tuple(cell.row[name] for name in ("setting", "victim", "classifier", "purifier")) for cell in grid.cells]
    assert found == [
        ("white-box", "one", "one", "pure-one"),
        ("white-box", "one", "one", "threshold"),
        ("transfer", "one", "two", "threshold"),
        ("white-box", "two", "two", "threshold"),
        ("transfer", "two", "one", "pure-one"),
        ("transfer", "two", "one", "threshold"),
    ]
    assert len(grid.groups) == 2, "the surrogate's images are made once"
    scores = {scored.cell.hash: scored for scored in Evaluator(grid, "cpu").evaluate(*batch())}
    sent = next(cell for cell in grid.cells if cell.row["setting"] == "transfer")
    two = load("classifier", networks["two"]).build()
    assert scores[sent.hash].scores["pred_clean"].to_pylist() == two(batch()[0]).argmax(1).tolist()
    assert scores[sent.hash].scores["pred_adversarial"].to_pylist() == two(scores[sent.hash].x_adv).argmax(1).tolist()


def test_a_surrogate_is_attacked_and_not_evaluated(networks: dict[str, str]) -> None:
    only = {"classifiers": (networks["one"],), "surrogates": (networks["two"],), "purifiers": ("identity",)}
    found = cells(grid_of(networks, attacks=("fgsm",), settings=("white-box", "transfer", "adaptive"), **only))
    assert found == [
        ("white-box", "fgsm", "one", "one", "identity"),
        ("adaptive", "fgsm", "identity+one", "one", "identity"),
        ("transfer", "fgsm", "two", "one", "identity"),
    ]


def test_a_curve_has_every_radius_of_every_attack_that_has_one(networks: dict[str, str]) -> None:
    attacks = ("none", "fgsm", "torchattacks.PGD,steps=2", "deepfool")
    changes = {"attacks": attacks, "epsilons": (0.1, 0.2), "settings": ("white-box",), "purifiers": ("identity",)}
    grid = build_grid(grid_of(networks, classifiers=(networks["one"],), **changes), "digits", ROWS)
    assert [(cell.row["attack"], cell.row["eps"]) for cell in grid.cells] == [
        ("none", None),
        ("fgsm", 0.1),
        ("fgsm", 0.2),
        ("torchattacks.PGD", 0.1),
        ("torchattacks.PGD", 0.2),
        ("deepfool", None),
    ]


MINE = """
import dataclasses
import torch
from raypurify.attacks import counted
from raypurify.metrics import Metric
from raypurify.purifiers.identity import Identity

@dataclasses.dataclass(frozen=True, kw_only=True)
class Brighten:
    by: float = 0.1
    norm = "linf"
    radius = "by"
    def __call__(self, victim, x, y, *, seeds, target=None):
        return counted((x + self.by).clamp(0, 1), steps=0, queries=0)

class Watchful(Identity):
    trivial = False
    def detect(self, x):
        return x.flatten(1).mean(dim=1) > 0.55

def brighter(scale=1):
    return Metric(name="brighter", measure=lambda a, b: scale * (a - b).flatten(1).mean(dim=1))

def unshaped():
    return Metric(name="unshaped", measure=lambda a, b: (a - b).mean())

def double():
    return Metric(name="psnr", measure=lambda a, b: a)

def nothing():
    return 3
"""


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    name = f"of_{tmp_path.name}"
    (tmp_path / f"{name}.py").write_text(MINE)
    monkeypatch.syspath_prepend(tmp_path)
    return name


def test_a_curve_calls_a_radius_as_its_attack_does(networks: dict[str, str], mine: str) -> None:
    attacks = ("torchattacks.PIFGSM", f"{mine}:Brighten")
    changes = {"attacks": attacks, "epsilons": (0.1, 0.2), "settings": ("white-box",), "purifiers": ("identity",)}
    grid = build_grid(grid_of(networks, classifiers=(networks["one"],), **changes), "digits", ROWS)
    told = [(cell.row["eps"], cell.row["radius"], json.loads(cell.row["params"])) for cell in grid.cells]
    assert [(eps, name, params[name]) for eps, name, params in told] == [
        (0.1, "max_epsilon", 0.1),
        (0.2, "max_epsilon", 0.2),
        (0.1, "by", 0.1),
        (0.2, "by", 0.2),
    ]


def test_a_metric_and_a_detector_of_the_users_fill_their_columns(networks: dict[str, str], mine: str) -> None:
    changes = {"attacks": (f"{mine}:Brighten,by=0.1",), "settings": ("white-box",), "classifiers": (networks["one"],)}
    config = grid_of(
        networks, purifiers=(f"{mine}:Watchful", "identity"), metrics=(f"{mine}:brighter,scale=2",), **changes
    )
    grid = build_grid(config, "digits", ROWS)
    assert [cell.row["trivial"] for cell in grid.cells] == [False, True]
    assert {cell.hash for cell in grid.cells} == {
        cell.hash for cell in build_grid(dataclasses.replace(config, metrics=()), "digits", ROWS).cells
    }, "a metric changes no image"
    watchful, identity = (scored.scores for scored in Evaluator(grid, "cpu").evaluate(*batch()))
    assert watchful["detected"].to_pylist() == [True] * ROWS
    assert watchful["detected_clean"].to_pylist() == [False] * ROWS
    assert identity["detected"].null_count == identity["detected_clean"].null_count == ROWS
    assert 0.15 < pc.mean(watchful["brighter_purified"]).as_py() <= 0.2
    assert pc.max(watchful["brighter_clean_purified"]).as_py() == 0


def test_bad_metrics_are_refused(networks: dict[str, str], mine: str) -> None:
    for name, message in (("psnr", "expected my_package"), (f"{mine}:nothing", "expected a raypurify.metrics.Metric")):
        with pytest.raises(ValueError, match=message):
            built_metrics(grid_of(networks, metrics=(name,)))
    with pytest.raises(ValueError, match=r"columns \['psnr_adversarial', 'psnr_clean_purified', 'psnr_purified'\]"):
        built_metrics(grid_of(networks, metrics=(f"{mine}:double",)))
    with pytest.raises(ValueError, match=r"unshaped must return \(N,\); got \(\) for 2 images"):
        preflight.check_metrics(built_metrics(grid_of(networks, metrics=(f"{mine}:unshaped",))), (8, 8, 1))


def test_adaptive_cells_say_how_they_go_around_a_purifier(networks: dict[str, str]) -> None:
    purifiers = ("identity", "rounding,bits=4", "gaussian_noise")
    changes = {"attacks": ("fgsm",), "settings": ("adaptive",), "classifiers": (networks["one"],)}
    grid = build_grid(grid_of(networks, purifiers=purifiers, bpda="mean_filter", eot=3, **changes), "digits", ROWS)
    added = [{k: v for k, v in json.loads(cell.row["params"]).items() if k in ("bpda", "eot")} for cell in grid.cells]
    assert added == [{}, {"bpda": "mean_filter"}, {"eot": 3}]


def test_adaptive_cells_are_checked_for_masked_gradients(networks: dict[str, str]) -> None:
    changes = {
        "attacks": ("fgsm,epsilon=0.1",),
        "classifiers": (networks["one"],),
        "settings": ("white-box", "adaptive"),
    }
    grid = build_grid(grid_of(networks, purifiers=(networks["pure-one"], "threshold"), **changes), "digits", ROWS)
    for scored in Evaluator(grid, "cpu").evaluate(*batch()):
        checked = scored.cell.row["setting"] == "adaptive"
        clips = checked and scored.cell.row["purifier"] == "pure-one"
        assert scored.scores["pred_multi_step"].null_count == (0 if checked else ROWS)
        assert scored.scores["zero_gradient"].null_count == 0, "the attack itself knows, in the other cells"
        assert scored.scores["pred_straight_through"].null_count == (0 if clips else ROWS)
    few = build_grid(grid_of(networks, masking_images=2, **changes), "digits", 6)
    assert few.masking_share == pytest.approx(1 / 3)
    none = build_grid(grid_of(networks, masking_images=0, **changes), "digits", ROWS)
    for scored in Evaluator(none, "cpu").evaluate(*batch()):
        assert scored.scores["pred_multi_step"].null_count == ROWS


def test_a_random_purifier_draws_by_the_images_ids(networks: dict[str, str]) -> None:
    changes = {"attacks": ("none",), "settings": ("white-box",), "classifiers": (networks["one"],)}
    grid = build_grid(grid_of(networks, purifiers=("gaussian_noise",), **changes), "digits", ROWS)
    x, y, ids = batch()
    whole = next(Evaluator(grid, "cpu").evaluate(x, y, ids)).x_pure
    part = next(Evaluator(grid, "cpu").evaluate(x[3:], y[3:], ids[3:])).x_pure
    assert torch.equal(whole[3:], part)
    assert not torch.equal(whole, x)
    assert len({image.std().item() for image in whole - x}) == ROWS


def test_stages_that_run_apart_give_the_same_scores_with_their_own_networks_alone(
    networks: dict[str, str], mine: str
) -> None:
    purifiers = (networks["pure-one"], "gaussian_noise", f"{mine}:Watchful")
    grid = build_grid(grid_of(networks, purifiers=purifiers, attacks=("pgd,epsilon=0.1,steps=3",)), "digits", ROWS)
    expected = [scored.scores for scored in Evaluator(grid, "cpu").evaluate(*batch())]
    attacks, purifies, last = (Evaluator(grid, "cpu") for _ in range(3))
    prepared = attacks.prepare("attack", *batch())
    assert prepared.attacked
    assert not prepared.purified
    prepared = pickle.loads(pickle.dumps(purifies.prepare("purify", *batch(), prepared=prepared)))
    for scored, scores in zip(last.evaluate(*batch(), prepared=prepared), expected, strict=True):
        assert scored.scores.equals(scores)
    built = [[len(of._built) for of in (one.classifiers, one.purifiers)] for one in (attacks, purifies, last)]
    assert built == [[2, 3], [0, 3], [2, 0]]


def batch() -> tuple[torch.Tensor, torch.Tensor, list[str]]:
    x = torch.rand(ROWS, 1, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    return x, torch.arange(ROWS), [f"digits#{i}" for i in range(ROWS)]
