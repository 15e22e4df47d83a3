"""raypurify.attacks.torchattacks: every attack of the library in one table, and what the adapter settles for them."""

from __future__ import annotations

import copy
import dataclasses
import inspect
import json
import pickle
import random
import subprocess
import sys
from collections.abc import Callable

import numpy as np
import pytest
import torch
import torchattacks
from torch import Tensor, nn

from raypurify import plugins
from raypurify.attacks import Attack, radius_of
from raypurify.attacks.torchattacks import REFUSED, names
from raypurify.classifiers import a_net

# SparseFool hands numpy a tensor.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")

SEEDS = range(4)

ATTACKS = {
    "VANILA": "",
    "GN": "",
    "FGSM": "",
    "BIM": "",
    "RFGSM": "",
    "PGD": "",
    "EOTPGD": "steps=3",
    "FFGSM": "",
    "TPGD": "",
    "MIFGSM": "",
    "UPGD": "",
    "APGD": "",
    "APGDT": "steps=4",
    "DIFGSM": "random_start=true",
    "TIFGSM": "random_start=true",
    "Jitter": "",
    "NIFGSM": "",
    "PGDRS": "steps=3",
    "SINIFGSM": "steps=3",
    "VMIFGSM": "steps=3",
    "VNIFGSM": "steps=3",
    "SPSA": "nb_sample=16,max_batch_size=8",
    "JSMA": "gamma=0.05",
    "EADL1": "binary_search_steps=3,max_iterations=20,initial_const=1",
    "EADEN": "binary_search_steps=3,max_iterations=20,initial_const=1",
    "PIFGSM": "",
    "PIFGSMPP": "",
    "CW": "steps=20,c=5",
    "PGDL2": "",
    "DeepFool": "steps=10",
    "PGDRSL2": "steps=3",
    "SparseFool": "steps=2",
    "OnePixel": "steps=2",
    "Pixle": "restarts=2,max_iterations=3",
    "FAB": "steps=4,norm=L2,eps=1",
    "AutoAttack": "eps=0.2",
    "Square": "n_queries=30,eps=0.1",
    "MultiAttack": "",
    "LGV": "",
}
FOUR_CLASSES = ("APGDT", "AutoAttack")  # their loss compares four logits
RUN = [name for name in ATTACKS if name not in REFUSED]
STEPPING = [name for name in RUN if "alpha" in inspect.signature(getattr(torchattacks, name)).parameters]
MINIMISING = ("JSMA", "EADL1", "EADEN", "CW", "DeepFool", "SparseFool", "OnePixel", "Pixle")
UNTARGETED = ("VANILA", "GN", "TPGD", "APGD", "APGDT", "PIFGSM", "DeepFool", "SparseFool", "FAB", "AutoAttack")


def build(name: str, more: str = "") -> Attack:
    text = ",".join(filter(None, [f"torchattacks.{name}", ATTACKS[name], more]))
    return plugins.build("raypurify.attacks", plugins.Spec.parse(text))


def toy(classes: int, channels: int = 3) -> nn.Module:
    """A network whose parts are in different modes and of which a part is still trained."""
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(channels, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.Tanh(),
        nn.Dropout(0.5),
        nn.Flatten(),
        nn.Linear(4 * 12 * 12, classes),
    )
    network.eval()
    network[3].train()
    network[0].requires_grad_(False)
    return network


def victim_for(name: str) -> nn.Module:
    return toy(4 if name in FOUR_CLASSES else 3)


def predictions(victim: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        return copy.deepcopy(victim).eval()(x).argmax(dim=1)


@pytest.fixture
def images() -> Tensor:
    x = torch.rand(4, 3, 12, 12, generator=torch.Generator().manual_seed(1))
    x[:, :, :3] = 0  # black pixels, on the edge of the box
    return x


def state_of(victim: nn.Module) -> list[object]:
    """All that an attack must leave as it is."""
    return [
        [module.training for module in victim.modules()],
        [(parameter.requires_grad, parameter.grad) for parameter in victim.parameters()],
        {name: tensor.tolist() for name, tensor in victim.state_dict().items()},
        [sorted(vars(module)) for module in victim.modules()],
        torch.get_rng_state().tolist(),
        [part.tolist() if isinstance(part, np.ndarray) else part for part in np.random.get_state()],
        random.getstate(),
        torch.is_grad_enabled(),
    ]


def test_the_table_is_the_library() -> None:
    assert set(ATTACKS) == set(torchattacks.__all__)
    assert names() == [name for name in torchattacks.__all__ if name in RUN]


@pytest.mark.parametrize("name", RUN)
def test_every_attack(name: str, images: Tensor) -> None:
    victim, attack = victim_for(name), build(name)
    labels, before = predictions(victim, images), images.clone()
    labels[3] = (labels[3] + 1) % 3  # one image that is wrong from the start
    state = state_of(victim)
    with torch.no_grad():
        attacked = attack(victim, images, labels, seeds=SEEDS)
    assert state_of(victim) == state
    assert torch.equal(images, before)
    x_adv, change = attacked.x_adv, (attacked.x_adv - images).flatten(1)
    assert x_adv.shape == images.shape
    assert x_adv.dtype == torch.float32
    assert not x_adv.requires_grad
    assert x_adv.min() >= 0
    assert x_adv.max() <= 1
    radius = radius_of(attack)
    if radius is not None:
        lengths = change.norm(dim=1) if attack.norm == "l2" else change.abs().amax(dim=1)
        assert lengths.max() <= radius + 1e-6
    elif name in MINIMISING:
        untouched = change.abs().amax(dim=1) == 0
        assert untouched[predictions(victim, x_adv) == labels].all()
        assert not untouched[:3].all(), "the table's parameters are too weak to fool a single image"
    assert attacked.steps.shape == attacked.queries.shape == (4,)
    assert attacked.steps.dtype == attacked.queries.dtype == torch.int64
    torch.manual_seed(99)
    np.random.seed(99)
    random.seed(99)
    assert torch.equal(x_adv, attack(victim, images, labels, seeds=SEEDS).x_adv)


@pytest.mark.parametrize("name", RUN)
def test_every_attack_runs_on_a_net(name: str) -> None:
    torch.manual_seed(0)
    victim = a_net.build().eval().requires_grad_(False)
    digits = torch.rand(2, 1, 28, 28, generator=torch.Generator().manual_seed(1))
    attacked = build(name)(victim, digits, predictions(victim, digits), seeds=range(2))
    assert attacked.x_adv.shape == digits.shape
    assert attacked.x_adv.isfinite().all()


@pytest.mark.parametrize("name", RUN)
def test_goes_towards_a_target_or_says_that_it_does_not(name: str, images: Tensor) -> None:
    victim, attack = victim_for(name), build(name)
    labels = predictions(victim, images)
    target = (labels + 1) % 3
    state = state_of(victim)
    if name in UNTARGETED:
        with pytest.raises(ValueError, match=f"torchattacks.{name} can't be sent to a target"):
            attack(victim, images, labels, seeds=SEEDS, target=target)
        assert state_of(victim) == state
        return
    x_adv = attack(victim, images, labels, seeds=SEEDS, target=target).x_adv
    assert state_of(victim) == state
    victim.eval()
    before, after = (torch.log_softmax(victim(x), dim=1)[range(4), target] for x in (images, x_adv))
    if name in ("OnePixel", "Pixle", "SPSA"):  # random searches, with too few draws here
        assert after.mean() >= before.mean()
    else:
        assert after.mean() > before.mean()
    if name in MINIMISING:
        missed = predictions(victim, x_adv) != target
        assert torch.equal(x_adv[missed], images[missed])


@pytest.mark.parametrize("name", RUN)
def test_the_memory_format_of_colour_makes_no_difference(name: str, images: Tensor) -> None:
    victim = victim_for(name).to(memory_format=torch.channels_last)
    labels = predictions(victim, images)
    attack, last = build(name), images.contiguous(memory_format=torch.channels_last)
    x_adv = attack(victim, last, labels, seeds=SEEDS).x_adv
    assert x_adv.isfinite().all()
    if name != "DeepFool":  # it stops on the boundary, where rounding decides
        torch.testing.assert_close(x_adv, attack(victim, images, labels, seeds=SEEDS).x_adv, rtol=0, atol=1e-5)


def test_upgd_compares_the_target_with_the_label(images: Tensor) -> None:
    victim = toy(4)
    labels = predictions(victim, images)
    target = (labels + 1) % 4
    x_adv = build("UPGD", "loss=dlr,eps=0.1")(victim, images, labels, seeds=SEEDS, target=target).x_adv
    assert (predictions(victim, x_adv) == target).any()


def test_a_seed_makes_the_difference(images: Tensor) -> None:
    victim = toy(3)
    labels = predictions(victim, images)
    for name in ("PGD", "APGD", "Square", "Pixle", "GN"):
        attack = build(name)
        first = attack(victim, images, labels, seeds=SEEDS).x_adv
        assert not torch.equal(first, attack(victim, images, labels, seeds=range(1, 5)).x_adv), name


@pytest.mark.parametrize("name", FOUR_CLASSES)
def test_too_few_classes_are_refused(name: str, images: Tensor) -> None:
    victim = toy(3)
    with pytest.raises(ValueError, match=f"{name} compares 4 classes; the victim has 3"):
        build(name)(victim, images, predictions(victim, images), seeds=SEEDS)


@pytest.mark.parametrize(("name", "more"), [("APGD", "loss=dlr"), ("UPGD", "loss=dlr"), ("AutoAttack", "version=rand")])
def test_a_loss_that_compares_three_classes(name: str, more: str, images: Tensor) -> None:
    attack = build(name, more)
    attack(toy(3), images, predictions(toy(3), images), seeds=SEEDS)
    with pytest.raises(ValueError, match=f"{name} compares 3 classes; the victim has 2"):
        attack(toy(2), images, predictions(toy(2), images), seeds=SEEDS)


def test_the_number_of_classes_is_the_users_or_the_victims(images: Tensor) -> None:
    victim = toy(12)
    labels = predictions(victim, images)
    for more, targets in (("", 9), (",n_classes=4", 3), (",n_classes=12", 11)):  # the library's 10, or the user's
        attack = plugins.Spec.parse(f"torchattacks.FAB,multi_targeted=true,eps=0,steps=4{more}")
        attacked = plugins.build("raypurify.attacks", attack)(victim, images, labels, seeds=SEEDS)
        assert attacked.steps.tolist() == [4 * targets] * 4
    with pytest.raises(ValueError, match=r"compares 13 classes; the victim has 12.*smaller n_classes"):
        build("FAB", "n_classes=13")(victim, images, labels, seeds=SEEDS)


def test_autoattack_is_as_strong_as_its_parts_and_changes_only_what_it_fooled(images: Tensor) -> None:
    victim = toy(4)
    labels = predictions(victim, images)
    survived = []
    for eps in (0.005, 0.2):
        x_adv = build("AutoAttack", f"eps={eps}")(victim, images, labels, seeds=SEEDS).x_adv
        right = predictions(victim, x_adv) == labels
        changed = (x_adv != images).flatten(1).any(dim=1)
        assert torch.equal(changed, ~right)
        for name in ("APGD", "APGDT", "Square"):
            other = build(name, f"eps={eps}")(victim, images, labels, seeds=SEEDS).x_adv
            assert right.sum() <= (predictions(victim, other) == labels).sum()
        survived.append(right.sum().item())
    assert survived == [2, 0]


@pytest.mark.parametrize("name", ["TIFGSM", "PIFGSM", "PIFGSMPP"])
def test_a_grey_image_is_a_colour_image_whose_other_channels_are_not_seen(name: str, images: Tensor) -> None:
    class Red(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return grey(x[:, :1])

    grey = toy(3, channels=1).eval()
    labels = predictions(grey, images[:, :1])
    radius = "eps=0.3,alpha=0.05,random_start=true" if name == "TIFGSM" else "max_epsilon=0.3"
    attack = plugins.build("raypurify.attacks", plugins.Spec.parse(f"torchattacks.{name},{radius}"))
    x_adv = attack(grey, images[:, :1], labels, seeds=SEEDS).x_adv
    assert x_adv.shape == (4, 1, 12, 12)
    assert (predictions(grey, x_adv) != labels).any()
    if name != "TIFGSM":  # its random start is drawn for every channel
        copies = images[:, :1].expand(-1, 3, -1, -1)
        torch.testing.assert_close(attack(Red(), copies, labels, seeds=SEEDS).x_adv[:, :1], x_adv)


@pytest.mark.parametrize("name", ["FGSM", "BIM", "MIFGSM"])
def test_it_is_the_librarys_result(name: str, images: Tensor) -> None:
    victim = toy(3).eval().requires_grad_(False)
    labels = predictions(victim, images)
    step = {} if name == "FGSM" else {"alpha": 0.025}  # a quarter of eps, as in the library's defaults
    theirs = getattr(torchattacks, name)(victim, eps=0.1, **step)(images, labels)
    attacked = build(name, "eps=0.1")(victim, images, labels, seeds=SEEDS)
    torch.testing.assert_close(attacked.x_adv, theirs, rtol=0, atol=1e-7)


@pytest.mark.parametrize("name", STEPPING)
def test_the_step_follows_the_radius(name: str, images: Tensor) -> None:
    victim = toy(3)
    labels = predictions(victim, images)
    reached = []
    for eps in (0.1, 0.3):
        attack = plugins.build("raypurify.attacks", plugins.Spec.parse(f"torchattacks.{name},eps={eps}"))
        change = (attack(victim, images, labels, seeds=SEEDS).x_adv - images).flatten(1)
        reached.append((change.norm(dim=1) if attack.norm == "l2" else change.abs().amax(dim=1)).max().item())
    assert reached == pytest.approx([0.1, 0.3], rel=0.05)


def test_a_step_that_is_given_is_the_users() -> None:
    default = plugins.build("raypurify.attacks", plugins.Spec.parse("torchattacks.BIM"))
    assert default.alpha == 2 / 255
    assert build("BIM", "eps=0.3,alpha=0.01").alpha == 0.01
    assert build("BIM", "alpha=0.01").alpha == 0.01
    assert build("BIM", "eps=0.3").alpha == pytest.approx(0.075)


@pytest.mark.parametrize(
    ("name", "more", "steps", "queries"),
    [
        ("VANILA", "", 0, 1),  # one to see whether it failed
        ("GN", "", 0, 0),
        ("FGSM", "", 1, 2),
        ("PGD", "steps=7", 7, 14),
        ("EOTPGD", "steps=3,eot_iter=4", 12, 24),
        ("SPSA", "nb_sample=16", 0, 32),
        ("PGDRS", "steps=2,noise_batch_size=5", 10, 20),
    ],
)
def test_counts_what_goes_through_the_victim(name: str, more: str, steps: int, queries: int, images: Tensor) -> None:
    victim = toy(3)
    attack = plugins.build("raypurify.attacks", plugins.Spec.parse(f"torchattacks.{name}" + (more and f",{more}")))
    attacked = attack(victim, images, predictions(victim, images), seeds=SEEDS)
    assert attacked.steps.tolist() == [steps] * 4
    assert attacked.queries.tolist() == [queries] * 4


class Breaks(nn.Module):
    """Fails on its third call."""

    def __init__(self) -> None:
        super().__init__()
        self.network, self.calls = toy(4), 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        torch.rand(1), np.random.rand(), random.random()
        if self.calls == 3:
            raise RuntimeError("the third call")
        return self.network(x)


@pytest.mark.parametrize("name", ["PGD", "AutoAttack", "OnePixel", "CW"])
def test_an_exception_leaves_nothing_behind(name: str, images: Tensor) -> None:
    victim = Breaks()
    state = state_of(victim)
    with pytest.raises(RuntimeError, match="the third call"), torch.no_grad():
        build(name)(victim, images, torch.zeros(4, dtype=torch.int64), seeds=SEEDS)
    assert victim.calls == 3
    assert state_of(victim) == state


@pytest.mark.parametrize("name", ["MIFGSM", "UPGD", "DIFGSM", "DeepFool", "PGDL2"])
def test_an_image_without_a_gradient_stays_a_picture(name: str, images: Tensor) -> None:
    class Rounding(nn.Module):
        """Without parameters, and flat everywhere."""

        def forward(self, x: Tensor) -> Tensor:
            return ((x * 4).round() + 0 * x).mean(dim=(2, 3))

    victim = Rounding()
    attacked = build(name)(victim, images, victim(images).argmax(dim=1), seeds=SEEDS)
    x_adv = attacked.x_adv
    assert x_adv.isfinite().all()
    assert attacked.zero_gradient is None if name == "DeepFool" else attacked.zero_gradient.all()
    if name not in ("DIFGSM", "PGDL2"):  # these start at random
        assert torch.equal(x_adv, images)


@pytest.mark.parametrize("name", ["FGSM", "PGD", "APGD", "AutoAttack", "EOTPGD"])
def test_tells_where_the_gradient_was_zero(name: str, images: Tensor) -> None:
    class Certain(nn.Module):
        """So sure of the first two images that the cross-entropy is flat there in float32."""

        def forward(self, x: Tensor) -> Tensor:
            scale = torch.ones(len(x), 1)
            scale[x[:, 0, 11, 11] > 0.99] = 1e6
            return scale * network(x)

    network = toy(4).eval()
    images[:2, 0, 11, 11], images[2:, 0, 11, 11] = 1, 0
    attacked = build(name, "eps=0.005")(Certain(), images, predictions(network, images), seeds=SEEDS)
    assert attacked.zero_gradient.tolist() == [True, True, False, False]
    assert build("GN")(network, images, predictions(network, images), seeds=SEEDS).zero_gradient is None


def test_pixle_one_image_at_a_time(images: Tensor) -> None:
    victim = toy(3)
    attack = build("Pixle", "update_each_iteration=true,x_dimensions=[2,4]")
    assert attack(victim, images, predictions(victim, images), seeds=SEEDS).x_adv.shape == images.shape


def test_works_under_autocast(images: Tensor) -> None:
    victim = toy(3)
    labels = predictions(victim, images)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        for name in ("PGD", "Pixle", "DeepFool"):
            assert build(name)(victim, images, labels, seeds=SEEDS).x_adv.dtype == torch.float32


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda x: x.double(), "float32"),
        (lambda x: (x * 255).to(torch.uint8), "float32"),
        (lambda x: x * 255, r"pixels in \[0, 1\].*255?"),
        (lambda x: x * 2 - 1, r"pixels in \[0, 1\].*-1"),
        (lambda x: x / 0, r"pixels in \[0, 1\].*nan"),
        (lambda x: x[0], r"\(N, C, H, W\)"),
        (lambda x: x[:0], "N >= 1"),
        (lambda x: x[:3], "y must be"),
    ],
)
def test_wrong_images_are_refused(change: Callable[[Tensor], Tensor], reason: str, images: Tensor) -> None:
    with pytest.raises(ValueError, match=reason):
        build("FGSM")(toy(3), change(images), torch.zeros(4, dtype=torch.int64), seeds=SEEDS)


def test_wrong_labels_and_seeds_are_refused(images: Tensor) -> None:
    attack, labels = build("FGSM"), torch.zeros(4, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"y must be.*float32"):
        attack(toy(3), images, labels.float(), seeds=SEEDS)
    with pytest.raises(ValueError, match="target must be"):
        attack(toy(3), images, labels, seeds=SEEDS, target=labels[:2])
    with pytest.raises(ValueError, match="seeds must be one for each of 4"):
        attack(toy(3), images, labels, seeds=[0])
    for name in ("DIFGSM", "TIFGSM", "Pixle"):
        with pytest.raises(ValueError, match="square images only"):
            build(name)(toy(3), images[..., :9], labels, seeds=SEEDS)


def test_pixels_outside_by_rounding_are_clamped(images: Tensor) -> None:
    images[0, 0, 0, 0], images[0, 0, 0, 1] = -3e-8, 1 + 1.2e-7
    attacked = build("VANILA")(toy(3), images, predictions(toy(3), images), seeds=SEEDS)
    assert torch.equal(attacked.x_adv, images.clamp(0, 1))


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_what_a_name_cannot_describe_is_refused_with_the_reason(name: str) -> None:
    with pytest.raises(ValueError, match=f"torchattacks.{name} can't be given by name: it "):
        build(name)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("torchattacks.PDG", "no attack 'PDG'; it has VANILA.*PGD.*Square"),
        ("torchattacks", "unknown name 'torchattacks'.*pgd.*torchattacks.NAME"),
        ("torchattacks.", "no attack ''"),
        ("torchattacks.FGSM,epsilon=0.3", r"no parameter \['epsilon'\]; it takes \['eps'\]"),
        ("torchattacks.VANILA,eps=0.3", r"no parameter \['eps'\]; it takes none"),
        ("torchattacks.APGD,seed=3", r"no parameter \['seed'\].*'steps'"),
        ("torchattacks.APGD,model=3", r"no parameter \['model'\]"),
        ("torchattacks.APGD,device=cuda", r"no parameter \['device'\]"),
        ("torchattacks.FGSM,eps=large", "eps must be a number; got 'large'"),
        ("torchattacks.FGSM,eps=8", r"linf radius must be in \[0, 1\].*got 8"),
        ("torchattacks.PGDL2,eps=-1", r"l2 radius must be in \[0, inf\].*got -1"),
        ("torchattacks.PIFGSM,max_epsilon=16", r"linf radius must be in \[0, 1\].*got 16"),
        ("torchattacks.FAB,norm=L1", r"norm must be one of .*got 'l1'"),
        ("torchattacks.PGDRS,noise_type=gaussian", r"noise_type must be one of .*'guassian'.*got 'gaussian'"),
        ("torchattacks.PGD,random_start=3", "random_start must be a bool; got 3"),
        ("torchattacks.FAB,n_classes=0", "n_classes must be 2 or more"),
        ("torchattacks.AutoAttack,version=fast", "refuses AutoAttack.*Not valid version"),
        ("torchattacks.TIFGSM,kernel_name=round", "refuses TIFGSM.*NotImplementedError"),
    ],
)
def test_what_can_not_be_built_says_why(text: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        plugins.build("raypurify.attacks", plugins.Spec.parse(text))


@pytest.mark.parametrize(
    ("text", "norm", "epsilon"),
    [
        ("torchattacks.APGD,eps=0.3,steps=20", "linf", 0.3),
        ("torchattacks.APGD,norm=L2,eps=2", "l2", 2),
        ("torchattacks.PIFGSM", "linf", 16 / 255),
        ("torchattacks.PGDL2", "l2", 1.0),
        ("torchattacks.CW", None, None),
    ],
)
def test_norm_and_epsilon_are_the_librarys(text: str, norm: str | None, epsilon: float | None) -> None:
    attack = plugins.build("raypurify.attacks", plugins.Spec.parse(text))
    assert (attack.norm, radius_of(attack)) == (norm, epsilon)


def test_its_configuration_is_a_frozen_dataclass_of_the_librarys_parameters() -> None:
    attack = build("APGD", "eps=0.3")
    assert dataclasses.asdict(attack) == {
        "norm": "linf",
        "eps": 0.3,
        "steps": 10,
        "n_restarts": 1,
        "loss": "ce",
        "eot_iter": 1,
        "rho": 0.75,
        "verbose": False,
    }
    for name in RUN:
        attack = build(name)
        json.dumps(dataclasses.asdict(attack))
        assert attack == build(name) == pickle.loads(pickle.dumps(attack))
        assert hash(attack) == hash(build(name))
    with pytest.raises(dataclasses.FrozenInstanceError):
        attack.eps = 1


def test_the_library_is_loaded_when_it_is_asked_for() -> None:
    script = "import sys, raypurify.attacks.torchattacks; print('torchattacks' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert run.stdout.split() == ["False"]
