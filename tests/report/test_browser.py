"""The page in a real browser: headless Chromium, driven through the pipe of its DevTools protocol."""

from __future__ import annotations

import base64
import fcntl
import json
import os
import select
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from report_rows import cell, checked, curve, summary_of

from raypurify import storage
from raypurify.report import write_report

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
SILENCE = 60  # seconds without a word from the browser after which it is given up

FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
    "--remote-debugging-pipe",
)

pytestmark = pytest.mark.skipif(BROWSER is None, reason="no chromium, chromium-browser or google-chrome on PATH")


class Tab:
    """A tab of a browser of its own. ``requested`` and ``complaints`` fill while pages load."""

    def __init__(self, profile: Path) -> None:
        assert BROWSER is not None
        commands, self._commands = os.pipe()
        self._answers, answers = os.pipe()
        # The browser reads descriptor 3 and writes descriptor 4: out of their way first, then there.
        ends = [fcntl.fcntl(end, fcntl.F_DUPFD, 10) for end in (commands, answers)]
        script = f'exec "$0" "$@" 3<&{ends[0]} 4>&{ends[1]}'
        self._process = subprocess.Popen(
            ["bash", "-c", script, BROWSER, *FLAGS, f"--user-data-dir={profile}"],
            pass_fds=ends,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        for end in (commands, answers, *ends):
            os.close(end)
        self._unread = b""
        self._count = 0
        self._session: str | None = None
        self.loaded = False
        self.requested: list[str] = []
        self.complaints: list[str] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        self._count += 1
        message: dict[str, Any] = {"id": self._count, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._commands, json.dumps(message).encode() + b"\0")
        while (answer := self._next()).get("id") != self._count:
            self._note(answer)
        assert "error" not in answer, f"{method}: {answer['error']}"
        return dict(answer["result"])

    def open(self, url: str, *, width: int, dark: bool = False) -> None:
        features = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        self.call("Emulation.setEmulatedMedia", media="screen", features=features)
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=width < 600
        )
        self.loaded = False
        self.call("Page.navigate", url=url)
        while not self.loaded:
            self._note(self._next())

    def evaluate(self, expression: str) -> Any:
        answer = self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def screenshot(self, path: Path) -> None:
        data = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=True)["data"]
        path.write_bytes(base64.b64decode(data))

    def close(self) -> None:
        self._session = None
        self.call("Browser.close")
        self._process.wait(timeout=SILENCE)
        os.close(self._commands)
        os.close(self._answers)

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self._unread:
            ready, _, _ = select.select([self._answers], [], [], SILENCE)
            assert ready, f"the browser has said nothing for {SILENCE} s"
            piece = os.read(self._answers, 1 << 20)
            assert piece, f"the browser has ended: {self._process.wait()}"
            self._unread += piece
        message, _, self._unread = self._unread.partition(b"\0")
        return dict(json.loads(message))

    def _note(self, event: dict[str, Any]) -> None:
        method, params = event.get("method"), event.get("params", {})
        if method == "Page.loadEventFired":
            self.loaded = True
        elif method == "Network.requestWillBeSent":
            self.requested.append(params["request"]["url"])
        elif method in ("Log.entryAdded", "Runtime.consoleAPICalled", "Runtime.exceptionThrown"):
            self.complaints.append(json.dumps(params))


@pytest.fixture(scope="module")
def tab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tab]:
    tab = Tab(tmp_path_factory.mktemp("profile"))
    yield tab
    tab.close()


@pytest.fixture
def page(
    tmp_path: Path,
    summary: pa.Table,
    samples: pa.Table,
    metrics: pa.Table,
    rejects: pa.Table,
    run: dict[str, Any],
) -> str:
    """The file URL of a whole report."""
    output = str(tmp_path)
    storage.write_table(storage.join(output, "summary.parquet"), summary)
    storage.write_table(storage.join(output, "samples", "part-0.parquet"), samples)
    storage.write_table(storage.join(output, "rejects", "part-0.parquet"), rejects)
    storage.write_json(storage.join(output, "run.json"), run)
    return Path(write_report(output, curves={"CRU-Net": metrics})).as_uri()


@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("dark", [False, True])
def test_page_loads_whole_and_quietly(tab: Tab, page: str, width: int, dark: bool) -> None:
    tab.requested.clear()
    tab.complaints.clear()
    tab.open(page, width=width, dark=dark)

    assert tab.evaluate("document.querySelectorAll('table.figures tbody tr:not(.group)').length") == 6
    assert (
        tab.evaluate("document.images.length") == tab.evaluate("document.querySelectorAll('.gallery img').length") > 0
    )
    assert tab.evaluate("[...document.images].every(image => image.complete && image.naturalWidth === 12)")
    assert tab.evaluate("[...document.querySelectorAll('figure svg')].every(svg => svg.getBBox().width > 100)")
    assert tab.evaluate("document.querySelectorAll('figure svg').length") == 3
    assert tab.evaluate("document.documentElement.scrollWidth") <= width, "the page itself scrolls sideways"
    assert [url for url in tab.requested if not url.startswith("data:")] == [page]
    assert tab.complaints == []


@pytest.mark.parametrize("width", [1280, 390])
def test_curves_and_warnings_fit(tab: Tab, tmp_path: Path, width: int) -> None:
    found = checked("zero_gradient", "single_step", zero_gradient_share=0.4, accuracy_single_step=0.2)
    rows = [
        *curve("pgd", {0.1: (0.6, 0.97, 0.5), 0.2: (0.2, 0.95, 0.21), 0.3: (0.01, 0.9, 0.04)}),
        *(cell(setting="transfer", eps=eps) for eps in (0.1, 0.3)),
        cell(attack="fgsm", setting="adaptive", purified=0.03, **found),
    ]
    storage.write_table(storage.join(str(tmp_path), "summary.parquet"), summary_of(*rows))
    tab.complaints.clear()
    tab.open(Path(write_report(str(tmp_path))).as_uri(), width=width)

    assert tab.evaluate("document.querySelectorAll('#security svg').length") == 2
    assert tab.evaluate("[...document.querySelectorAll('#security svg')].every(svg => svg.getBBox().width > 100)")
    assert tab.evaluate("document.querySelectorAll('.warning').length") == 2
    assert tab.evaluate("[...document.querySelectorAll('details')].every(folded => !folded.open)")
    for _ in range(2):  # folded and unfolded
        assert tab.evaluate("document.documentElement.scrollWidth") <= width, "the page itself scrolls sideways"
        tab.evaluate("document.querySelectorAll('details').forEach(folded => folded.open = true)")
    assert tab.complaints == []


def test_text_is_legible_in_both_modes(tab: Tab, page: str) -> None:
    """WCAG's contrast of 4.5 between each text variable and each ground it stands on."""
    contrast = """(() => {
        const style = getComputedStyle(document.documentElement);
        const luminance = name => {
            const probe = document.createElement('i');
            probe.style.color = style.getPropertyValue(name);
            document.body.append(probe);
            const channels = getComputedStyle(probe).color.match(/[\\d.]+/g).slice(0, 3).map(value => {
                const share = value / 255;
                return share <= 0.04045 ? share / 12.92 : ((share + 0.055) / 1.055) ** 2.4;
            });
            probe.remove();
            return 0.2126 * channels[0] + 0.7152 * channels[1] + 0.0722 * channels[2];
        };
        const ratio = (a, b) => (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
        const grounds = {
            '--page': ['--text', '--muted', '--purified', '--right', '--wrong'], '--raised': ['--text', '--muted'],
            '--purified-soft': ['--text'], '--adaptive-soft': ['--text'],
        };
        return Object.entries(grounds).flatMap(([ground, texts]) =>
            texts.map(text => [text, ground, ratio(luminance(text), luminance(ground))]));
    })()"""
    for dark in (False, True):
        tab.open(page, width=1280, dark=dark)
        measured = tab.evaluate(contrast)
        assert len(measured) == 9
        assert all(ratio >= 4.5 for _, _, ratio in measured), measured


def test_dark_mode_recolours_the_charts(tab: Tab, page: str) -> None:
    fills = []
    for dark in (False, True):
        tab.open(page, width=1280, dark=dark)
        fills.append(tab.evaluate("getComputedStyle(document.querySelector('#bars svg text')).fill"))
    assert fills[0] != fills[1]
