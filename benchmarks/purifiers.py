"""Defense-GAN's projection against the same descent of one image at a time, its restarts one by one or together; and
images/s of every purifier.

Networks have random weights, for speed does not depend on them; images are 28x28 and grey. All is computed in float32.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from _harness import arguments, median_rate, report, result, seconds_in_turns
from torch import Tensor, nn

from raypurify import models
from raypurify.attacks import purify
from raypurify.evaluation import cost

SHAPE = (28, 28, 1)
TOLERANCE = 1e-3
GENERATIVE = ("defense_gan", "dragan_defense")
NAMES = ("cru_net", "magnet", "ddsa", "cgan_defense", *GENERATIVE)


def built(text: str) -> nn.Module:
    """A purifier of random weights, in eval."""
    return models.untrained("purifier", models.shaped_for("purifier", text, SHAPE, 10)).eval().requires_grad_(False)


def one_at_a_time(network: Any, x: Tensor, seeds: list[int]) -> Tensor:
    """The same projections (N, C, H, W), each restart of each image by a descent of its own."""
    config, made = network.config, []
    own: Any = inspect.getmodule(type(network))
    for image, seed in zip(x, seeds, strict=True):
        candidates = []
        for restart in range(config.restarts):
            z = own.latents(own.derive([seed], restart), config, x.device)
            velocity = torch.zeros_like(z)
            for step in range(config.steps):
                rate = config.rate * (1 if step < own.COARSE * config.steps else own.FINE)
                z.requires_grad_(True)
                slope = torch.autograd.grad((network.generator(z) - image).square().mean(), z)[0]
                velocity = config.momentum * velocity - rate * slope
                z = z.detach() + velocity
            with torch.no_grad():
                candidate = network.generator(z)[0]
            candidates.append((float((candidate - image).square().mean()), candidate))
        made.append(min(candidates, key=lambda one: one[0])[1])
    return torch.stack(made)


def image_by_image(network: Any, x: Tensor, seeds: list[int]) -> Tensor:
    """The same projections (N, C, H, W), each image by a descent of its own, of all its restarts."""
    return torch.cat([network.project(x[i : i + 1], seeds[i : i + 1]) for i in range(len(x))])


def projection(device: str, *, quick: bool) -> list[dict[str, object]]:
    width, restarts, steps, n, alone, turns = (16, 10, 20, 50, 2, 2) if quick else (16, 10, 200, 100, 2, 3)
    torch.manual_seed(0)
    network = models.placed(built(f"defense_gan,width={width},restarts={restarts},steps={steps},rate=1.0"), device)
    x, seeds = torch.rand(n, 1, 28, 28, generator=torch.Generator().manual_seed(0)).to(device), list(range(n))
    few, own = x[:alone], seeds[:alone]
    ways = {
        "ours": lambda: purify(network, x, seeds).cpu(),
        "one image and restart at a time": lambda: one_at_a_time(network, few, own).cpu(),
        "one image at a time": lambda: image_by_image(network, few, own).cpu(),
    }
    with models.autocast(device, "float32"):
        made = {name: way()[:alone] for name, way in ways.items()}
        seconds = seconds_in_turns(ways, turns)
    together, *apart = made.values()
    difference = max(float((together - other).abs().max()) for other in apart)
    assert difference <= TOLERANCE, f"the projections differ by {difference}, more than {TOLERANCE}"
    title = f"Defense-GAN's projection, width {width}, {restarts} restarts of {steps} steps"
    ours = median_rate(n, seconds["ours"])
    more: dict[str, Any] = {"n_baseline": alone, "max_difference": difference, "device": device}
    baselines = [name for name in ways if name != "ours"]
    return [result(title, "images/s", ours, median_rate(alone, seconds[name]), name, n, **more) for name in baselines]


def speeds(device: str, *, quick: bool) -> list[dict[str, object]]:
    """Images a second of each purifier, beside CRU-Net's."""
    measured = {}
    for name in NAMES:
        network = built(f"{name},steps=20" if quick and name in GENERATIVE else name)
        measured[name] = cost.rate(network, SHAPE, device), cost.parameters(network)
    base = measured["cru_net"][0]
    return [
        result(f"{name}, speed", "images/s", speed, base, "cru_net", 50, parameters=numbers, device=device)
        for name, (speed, numbers) in measured.items()
    ]


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"), help="what computes")
    options = parser.parse_args()
    results = [part(options.device, quick=options.quick) for part in (projection, speeds)]
    report("purifiers", [one for part in results for one in part], ["torch"])


if __name__ == "__main__":
    main()
