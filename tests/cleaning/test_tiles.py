"""Large images: purified in tiles as they are whole, and compared in strips as they are whole."""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from raypurify import metrics, models
from raypurify.cleaning.tiles import PixelPurifier, Tiling
from raypurify.images import to_uint8_nhwc
from raypurify.metrics import compare
from raypurify.plugins import Spec, build, known
from raypurify.purifiers import cru_net

WEIGHTS = ("weights/mnist/cru_net-a_net", "weights/mnist/cru_net-b_net")
HALF_A_STEP = 0.5 / 255
"""Of 8 bits: a pixel that is written differs by one step at most."""
ENDLESS = "total_variation"
"""Its last step is told by the whole image, so that it says nothing of its reach."""
LEARNED = ("magnet", "ddsa", "cgan_defense")
"""With random weights. Defense-GAN and DRAGAN-Defense take images of one size."""
TRIVIAL = [
    name
    for name in known("raypurify.purifiers")
    if name not in (*LEARNED, "cru_net", "gaussian_noise", "defense_gan", "dragan_defense")
]


def photo(height: int, width: int, channels: int, seed: int = 0) -> NDArray[np.uint8]:
    """(H, W, C): the falling spectrum, the edges and the noise of a photograph."""
    draws = np.random.default_rng(seed)
    frequency = np.fft.fftfreq(height)[:, None] ** 2 + np.fft.fftfreq(width)[None] ** 2 + 1e-4

    def field(fall: float, *shape: int) -> NDArray[np.float64]:
        return np.fft.ifft2(np.fft.fft2(draws.normal(size=(*shape, height, width))) * frequency**-fall).real

    x = field(0.6, channels)
    x = 0.25 * (x - x.mean()) / x.std() + np.where(field(1.2) > 0, 0.7, 0.3) + draws.choice([-0.1, 0.1], x.shape)
    return (x.clip(0, 1) * 255).round().astype(np.uint8).transpose(1, 2, 0)


def noise(height: int, width: int, channels: int) -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (height, width, channels), dtype=np.uint8)


def random_cru_net(**params: Any) -> nn.Module:
    """Weights that keep the variance from layer to layer, so that what is far counts as it does after a training."""
    torch.manual_seed(0)
    network = cru_net.build(**params)
    for name, parameter in network.named_parameters():
        if name.endswith("bias"):
            nn.init.zeros_(parameter)
        else:
            nn.init.kaiming_normal_(parameter, a=network.config.negative_slope)
    nn.init.normal_(network.output.weight, std=0.03)
    return network.eval().requires_grad_(False)


def purifier(name: str) -> tuple[nn.Module, int]:
    """By name, and its channels."""
    if name == "random cru_net":
        return random_cru_net(channels=3), 3
    if name in LEARNED:
        torch.manual_seed(0)
        built: nn.Module = build("raypurify.purifiers", Spec(name=name, params={"channels": 3}))
        return built.eval().requires_grad_(False), 3
    return models.load("purifier", name).build(), 1 if name in WEIGHTS else 3


def whole(network: nn.Module, image: NDArray[np.uint8]) -> Tensor:
    """(C, H, W): the purifier's own output on the whole image."""
    with torch.no_grad():
        purified: Tensor = network(torch.from_numpy(image).permute(2, 0, 1)[None].float() / 255)
    return purified[0]


class Recorder(nn.Module):
    """Adds a constant to each pixel, and keeps the shapes that it was called with."""

    def __init__(self, **attributes: int) -> None:
        super().__init__()
        self.shapes: list[tuple[int, ...]] = []
        for name, value in attributes.items():
            setattr(self, name, value)

    def forward(self, x: Tensor) -> Tensor:
        self.shapes.append(tuple(x.shape))
        return x + 3 / 255


@pytest.mark.parametrize("picture", [photo, noise])
@pytest.mark.parametrize("name", [*WEIGHTS, "random cru_net", *LEARNED, *TRIVIAL])
def test_tiled_is_whole(name: str, picture: Any) -> None:
    """Everywhere, at the image's borders too."""
    network, channels = purifier(name)
    image = picture(331, 470, channels)
    strips = list(PixelPurifier(network, tiling=Tiling(tile=280)).strips(image, 0))
    assert len(strips) > 1
    expected = whole(network, image)
    difference = (torch.cat(strips, dim=1) - expected).abs().max().item()
    bound = HALF_A_STEP if name in WEIGHTS else 1e-3 if "cru_net" in name or name == ENDLESS else 1e-6
    assert difference < bound
    if name != "identity":
        assert (expected - torch.from_numpy(image).permute(2, 0, 1) / 255).abs().max() > 1e-3 or name == "rounding"


@pytest.mark.parametrize(("levels", "blocks"), [(1, 2), (2, 1), (3, 1)])
def test_tiles_that_share_twice_the_reach_are_exact(levels: int, blocks: int) -> None:
    network = random_cru_net(channels=1, levels=levels, blocks=blocks, width=4)
    image = photo(260, 390, 1)
    overlap = 2 * int(network.reach)
    strips = PixelPurifier(network, tiling=Tiling(tile=2 * overlap + 60, overlap=overlap)).strips(image, 0)
    torch.testing.assert_close(torch.cat(list(strips), dim=1), whole(network, image), rtol=0, atol=1e-6)


@pytest.mark.parametrize("levels", [1, 2, 3])
def test_cru_net_reaches_as_far_as_it_says(levels: int) -> None:
    network = cru_net.build(levels=levels, blocks=1, width=2).double()
    for parameter in network.parameters():
        nn.init.uniform_(parameter, 0.1, 0.3)  # positive: nothing cancels
    middle = network.reach + 20
    furthest = 0
    for place in range(middle, middle + network.multiple):
        x = torch.full((1, 1, network.multiple, 2 * middle + 10), 0.5, dtype=torch.float64)
        changed = x.clone()
        changed[..., place] += 1e3
        with torch.no_grad():
            moved = (network.residual(changed) - network.residual(x)).abs().amax(dim=(0, 1, 2)).nonzero()
        furthest = max(furthest, int((moved - place).abs().max()))
    assert furthest == network.reach


@pytest.mark.parametrize("name", [name for name in TRIVIAL if name != ENDLESS])
def test_a_trivial_purifier_reaches_no_further_than_it_says(name: str) -> None:
    network, channels = purifier(name)
    image = photo(96, 96, channels)
    for row, column in ((40, 40), (47, 48), (32, 63)):
        changed = image.copy()
        changed[row, column] ^= 255
        moved = (whole(network, changed) - whole(network, image)).abs().amax(dim=0).nonzero()
        assert len(moved)
        assert (moved - torch.tensor([row, column])).abs().max() <= network.reach


@pytest.mark.parametrize("tiling", [Tiling(), Tiling(tile=40, overlap=16, whole=1)], ids=["whole", "tiled"])
@pytest.mark.parametrize("shape", [(37, 61), (64, 48), (1, 1), (3, 200), (200, 5)])
def test_sides_are_padded_to_a_multiple_and_cropped(shape: tuple[int, int], tiling: Tiling) -> None:
    network = Recorder(multiple=8)
    image = np.minimum(noise(*shape, 3), 200)
    np.testing.assert_array_equal(PixelPurifier(network, tiling=tiling)(image[None], [0])[0], image + 3)
    assert all(side % 8 == 0 for _, _, *sides in network.shapes for side in sides)


def test_padding_repeats_the_edge() -> None:
    class Means(nn.Module):
        multiple = 8

        def forward(self, x: Tensor) -> Tensor:
            return x.mean(dim=(2, 3), keepdim=True).expand_as(x)

    image = np.array([[0, 90]], np.uint8)[None, :, :, None]
    assert PixelPurifier(Means())(image, [0]).reshape(-1).tolist() == [79, 79]  # 90 * 7 / 8


@pytest.mark.parametrize("shape", [(17, 40), (33, 15)])
def test_jpeg_is_left_to_end_its_blocks_itself(shape: tuple[int, int]) -> None:
    network, _ = purifier("jpeg")
    image = photo(*shape, 3)
    np.testing.assert_array_equal(PixelPurifier(network)(image[None], [0]), to_uint8_nhwc(whole(network, image)[None]))


def test_no_more_goes_through_at_once_than_the_tiling_says() -> None:
    network = Recorder()
    PixelPurifier(network, tiling=Tiling(whole=1300))(np.zeros((5, 20, 30, 3), np.uint8), range(5))
    assert network.shapes == [(2, 3, 20, 30), (2, 3, 20, 30), (1, 3, 20, 30)]
    network = Recorder()
    PixelPurifier(network, tiling=Tiling(tile=200, overlap=20, whole=99))(np.zeros((2, 700, 90, 1), np.uint8), range(2))
    assert len(network.shapes) == 8
    assert all(shape[2] <= 200 and shape[3] == 90 for shape in network.shapes)
    assert sum(shape[2] for shape in network.shapes) == 2 * (700 + 3 * 20)


def test_images_of_a_batch_keep_their_order_and_the_batch_does_not_matter() -> None:
    network, _ = purifier("median_filter")
    images = np.stack([photo(40, 50, 3, seed) for seed in range(5)])
    together = PixelPurifier(network, tiling=Tiling(whole=2 * 40 * 50))(images, range(5))
    for index, image in enumerate(images):
        np.testing.assert_array_equal(together[index], PixelPurifier(network)(image[None], [0])[0])
    assert PixelPurifier(network)(images[:0], []).shape == (0, 40, 50, 3)
    read_only = images.copy()
    read_only.setflags(write=False)
    np.testing.assert_array_equal(PixelPurifier(network)(read_only, range(5)), together)


def test_each_tile_of_a_random_purifier_draws_for_itself() -> None:
    network = models.load("purifier", "gaussian_noise,sigma=0.05").build()
    grey = np.full((2, 60, 60, 1), 128, np.uint8)
    tiling = Tiling(tile=30, overlap=0, whole=99)
    purified = PixelPurifier(network, tiling=tiling)(grey, [1, 2])
    tiles = [image[top : top + 30, left : left + 30] for image in purified for top in (0, 30) for left in (0, 30)]
    assert len({tile.tobytes() for tile in tiles}) == 8
    assert 0.045 < purified.std() / 255 < 0.055
    np.testing.assert_array_equal(PixelPurifier(network, tiling=tiling)(grey[1:], [2])[0], purified[1])


def test_bfloat16_is_near_float32() -> None:
    network, _ = purifier("random cru_net")
    image = photo(64, 64, 3)[None]
    exact, rounded = (PixelPurifier(network, precision=p)(image, [0]) for p in ("float32", "bfloat16"))
    assert 0 < np.abs(exact.astype(int) - rounded).max() < 12


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"tile": 0}, "tile must be at least 1; got 0"),
        ({"whole": 0}, "whole must be at least 1; got 0"),
        ({"overlap": -1}, r"overlap must be in 0\.\.384.*got -1"),
        ({"tile": 100, "overlap": 51}, r"overlap must be in 0\.\.50.*got 51"),
    ],
)
def test_a_tiling_that_cannot_be_is_refused(values: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Tiling(**values)


@pytest.mark.parametrize("attributes", [{"multiple": 64}, {"reach": 60}])
def test_tiles_too_small_for_the_purifier_are_refused(attributes: dict[str, int]) -> None:
    image = np.zeros((1, 300, 300, 1), np.uint8)
    with pytest.raises(ValueError, match=r"tile must be at least .* for this purifier.*got 100"):
        PixelPurifier(Recorder(**attributes), tiling=Tiling(tile=100, overlap=40, whole=1))(image, [0])


def test_refuses_what_are_not_images_and_purifiers_that_change_the_shape() -> None:
    for images in (np.zeros((2, 4, 4), np.uint8), np.zeros((1, 4, 4, 3), np.float32), np.zeros((2, 4, 4, 3), np.uint8)):
        with pytest.raises(ValueError, match=r"expected \(N, H, W, C\) uint8 and N seeds"):
            PixelPurifier(Recorder())(images, [0])
    with pytest.raises(ValueError, match=r"AvgPool2d made \(1, 3, 2, 2\) of \(1, 3, 4, 4\)"):
        PixelPurifier(nn.AvgPool2d(2))(np.zeros((1, 4, 4, 3), np.uint8), [0])


def unit(images: NDArray[np.uint8]) -> Tensor:
    return torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255


@pytest.mark.parametrize(
    "shape",
    [(3, 32, 32, 3), (900, 28, 28, 1), (2, 9, 50, 1), (2, 50, 10, 3), (1, 1, 1, 3), (1, 11, 700, 1), (2, 777, 900, 3)],
)
def test_compare_is_the_metrics_on_the_whole(shape: Sequence[int]) -> None:
    count, height, width, channels = shape
    a = np.stack([photo(height, width, channels, seed) for seed in range(min(count, 3))])[np.arange(count) % 3]
    b = (a.astype(int) + np.random.default_rng(1).integers(-20, 21, a.shape)).clip(0, 255).astype(np.uint8)
    b[0, 0, 0, 0] = a[0, 0, 0, 0] ^ 255
    measured = compare(a, b)
    assert list(measured) == ["psnr", "ssim", "linf", "l2"]
    for name, metric in (("psnr", metrics.psnr), ("ssim", metrics.ssim), ("linf", metrics.linf), ("l2", metrics.l2)):
        assert measured[name].dtype == np.float32
        expected = metric(unit(a), unit(b)).numpy()
        np.testing.assert_allclose(measured[name], expected, rtol=1e-5, atol=1e-5, err_msg=name)


def test_compare_of_equal_images_of_none_and_of_others() -> None:
    a = photo(200, 90, 3)[None]
    assert {name: values.tolist() for name, values in compare(a, a).items()} == {
        "psnr": [metrics.PSNR_CAP],
        "ssim": [1.0],
        "linf": [0.0],
        "l2": [0.0],
    }
    assert all(values.shape == (0,) for values in compare(a[:0], a[:0]).values())
    assert math.isnan(compare(a[:, :10], a[:, :10])["ssim"][0])
    for other in (a[:, 1:], a.astype(np.float32)):
        with pytest.raises(ValueError, match="uint8 of one shape"):
            compare(a, other)


TWELVE_MEGAPIXELS = """
import re, time
import numpy as np, torch
from torch import nn
from raypurify.purifiers.cru_net import build
from raypurify.cleaning.tiles import PixelPurifier
from raypurify.metrics import compare

network = build(channels=3)
nn.init.normal_(network.output.weight, std=0.2)
network.eval().requires_grad_(False)
image = np.random.default_rng(0).integers(0, 256, (1, 3000, 4000, 3), dtype=np.uint8)
began = time.monotonic()
purified = PixelPurifier(network)(image, [0])
assert compare(purified, image)["psnr"][0] < 40
# The high-water mark of this process: that of getrusage starts with the parent's.
peak = re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read())
print(int(peak[1]) / 1024, time.monotonic() - began)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_twelve_megapixels_fit_into_1_5_gib() -> None:
    run = subprocess.run([sys.executable, "-c", TWELVE_MEGAPIXELS], capture_output=True, text=True, check=True)
    mebibytes, seconds = map(float, run.stdout.split())
    print(f"{mebibytes:.0f} MiB, {seconds:.0f} s")
    assert mebibytes < 1536
