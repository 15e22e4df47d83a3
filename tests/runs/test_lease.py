"""One run at a time on an output: real processes, local files and a real S3 server."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from fault_proxy import Faults, Proxy
from servers import faulty, wait_for

from raypurify import storage
from raypurify.runs import lease
from raypurify.runs.lease import LeaseLostError
from raypurify.storage import conditional, retries

HOLDER = """
import sys
from raypurify.runs import lease
print("ready", flush=True)
while sys.stdin.readline():
    try:
        with lease.hold(sys.argv[1], sys.argv[2], heartbeat=0.2, good_for=float(sys.argv[3])) as held:
            print("held", flush=True)
            sys.stdin.readline()
            held.check()
        print("released", flush=True)
    except (ValueError, lease.LeaseLostError) as error:
        print(type(error).__name__, error, flush=True)
"""


class Run:
    """A process that holds a lease when told to, and lets it go when told again."""

    def __init__(self, output: str, attempt: str, good_for: float = 5.0) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", HOLDER, output, attempt, str(good_for)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.line() == "ready"

    def tell(self) -> None:
        assert self.process.stdin
        self.process.stdin.write("\n")
        self.process.stdin.flush()

    def line(self) -> str:
        assert self.process.stdout
        return self.process.stdout.readline().strip()

    def step(self) -> str:
        """Take the lease, or release it: what came of it."""
        self.tell()
        return self.line()

    def end(self) -> None:
        self.process.kill()
        self.process.communicate()


@pytest.fixture
def start() -> Iterator[type[Run]]:
    """Starts processes, and ends them after the test."""
    runs: list[Run] = []

    class Started(Run):
        def __init__(self, *args: object) -> None:
            super().__init__(*args)  # type: ignore[arg-type]
            runs.append(self)

    yield Started
    for run in runs:
        run.process.send_signal(signal.SIGCONT)
        run.end()


@pytest.fixture(scope="module")
def behind(s3: str) -> Iterator[Proxy]:
    """S3 where conditions hold also for requests at the same time, which moto alone does not promise."""
    with faulty(Faults()) as proxy:
        yield proxy


@pytest.fixture(params=["local", "s3"])
def output(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """URL of a run's folder."""
    if request.param == "local":
        return str(tmp_path / "run")
    request.getfixturevalue("behind")
    return f"s3://runs/{uuid.uuid4().hex}"


def elsewhere(output: str, good_for: float) -> None:
    """Leave the lease of a host that is lost."""
    with lease.hold(output, "first", heartbeat=good_for / 10, good_for=good_for):
        written = storage.read_json(storage.join(output, "_LEASE"))
    storage.write_json(storage.join(output, "_LEASE"), {**written, "host": "another"})


def refusal(output: str) -> str:
    """Why a second run is refused."""
    try:
        with lease.hold(output, "second"):
            return "it is not"
    except ValueError as error:
        return str(error)


@dataclasses.dataclass(frozen=True)
class Left:
    """Leases in ``lost`` and ``taken`` of a host that is lost, and one in ``slept`` of a process that is stopped."""

    lost: str
    refused: str
    taken: str
    slept: str
    sleeper: Run
    since: float

    def wait(self, seconds: float) -> None:
        """Return when the leases are at least this old."""
        time.sleep(max(0.0, self.since + seconds - time.monotonic()))


@pytest.fixture(scope="module", autouse=True)
def left_everywhere(behind: Proxy, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mapping[str, Left]]:
    """Leases whose time runs out while the other tests run."""
    left = {}
    for store, root in (("local", str(tmp_path_factory.mktemp("left"))), ("s3", f"s3://runs/{uuid.uuid4().hex}")):
        lost, taken, slept = (storage.join(root, name) for name in ("lost", "taken", "slept"))
        elsewhere(lost, 3.0)
        refused = refusal(lost)
        elsewhere(taken, 1.0)
        sleeper = Run(slept, "first", 2.0)
        assert sleeper.step() == "held"
        sleeper.process.send_signal(signal.SIGSTOP)
        left[store] = Left(lost, refused, taken, slept, sleeper, time.monotonic())
    yield left
    for one in left.values():
        one.sleeper.end()


@pytest.fixture(params=["local", "s3"])
def left(request: pytest.FixtureRequest, left_everywhere: Mapping[str, Left]) -> Left:
    return left_everywhere[request.param]


@pytest.fixture(params=["local", "s3", "memory", "s3 without conditions"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """URL of a file that is not there, on every kind of store."""
    if request.param == "local":
        yield str(tmp_path / "new" / "a")
    elif request.param == "memory":
        yield f"memory://runs/{uuid.uuid4().hex}"
    else:
        proxy = request.getfixturevalue("behind")
        proxy.faults = Faults(unsupported=("if-match", "if-none-match") if "without" in request.param else ())
        yield f"s3://runs/{uuid.uuid4().hex}"
        proxy.faults = Faults()


def test_conditions_hold_on_every_store(url: str) -> None:
    with pytest.raises(FileNotFoundError, match=url.rpartition("/")[2]):
        conditional.read(url)
    assert conditional.replace(url, b"none", "abc") is None
    assert not conditional.remove(url, "abc")
    assert not storage.exists(url)
    assert conditional.create(url, b"first")
    assert not conditional.create(url, b"second")
    data, version = conditional.read(url)
    assert data == b"first"
    later = conditional.replace(url, b"third", version)
    assert later is not None
    assert conditional.replace(url, b"fourth", version) is None
    assert not conditional.remove(url, version)
    assert conditional.read(url) == (b"third", later)
    assert conditional.remove(url, later)
    assert not storage.exists(url)


def test_local_conditions_leave_nothing_beside(tmp_path: Path) -> None:
    url = str(tmp_path / "a")
    conditional.create(url, b"first")
    conditional.create(url, b"second")
    conditional.replace(url, b"third", conditional.read(url)[1])
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_a_lost_answer_of_a_conditional_write_is_no_refusal(behind: Proxy) -> None:
    url = f"s3://runs/{uuid.uuid4().hex}"
    behind.faults = Faults(lost=("PUT",))
    behind.asked.clear()
    try:
        assert conditional.create(url, b"first")
        behind.asked.clear()
        assert conditional.replace(url, b"second", conditional.read(url)[1]) is not None
        assert behind.counts["lost"] >= 2
        assert conditional.read(url)[0] == b"second"
        assert not conditional.create(url, b"third")
    finally:
        behind.faults = Faults()


def test_the_age_is_by_the_clock_of_the_store(output: str) -> None:
    url = storage.join(output, "a")
    with pytest.raises(FileNotFoundError):
        conditional.age(url)
    storage.write_bytes(url, b"x")
    age = conditional.age(url)
    assert age is not None
    assert -1.0 <= age < 30.0
    if storage.is_local(url):
        os.utime(url, (0, 0))
        assert conditional.age(url) == pytest.approx(time.time(), abs=60)


def test_of_many_at_once_one_creates_and_one_replaces(output: str) -> None:
    rounds, takers = (60, 8) if storage.is_local(output) else (2, 4)
    barrier = threading.Barrier(takers)
    created: list[int] = []
    replaced: list[int] = []

    def take(name: str) -> None:
        for number in range(rounds):
            url = storage.join(output, str(number))
            barrier.wait()
            if conditional.create(url, name.encode()):
                created.append(number)
            barrier.wait()
            version = conditional.read(url)[1]
            barrier.wait()
            if conditional.replace(url, f"{name} again".encode(), version):
                replaced.append(number)

    threads = [threading.Thread(target=take, args=(f"taker {number}",)) for number in range(takers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert created == replaced == list(range(rounds))


def test_a_lease_says_who_holds_it_and_is_released(output: str) -> None:
    with lease.hold(output, "first") as held:
        written = storage.read_json(storage.join(output, "_LEASE"))
        assert written["attempt"] == held.attempt == "first"
        assert written["pid"] == os.getpid()
        assert written["good_for"] == 60.0
        held.check()
        lease.check(output, "first")
        with pytest.raises(LeaseLostError, match=r"attempt second no longer holds the output, attempt first on host"):
            lease.check(output, "second")
    assert storage.list_files(output) == []
    with pytest.raises(LeaseLostError):
        lease.check(output, "first")
    with pytest.raises(RuntimeError, match="in the run"), lease.hold(output):
        raise RuntimeError("in the run")
    assert storage.list_files(output) == []


def test_a_worker_asks_for_the_lease_now_and_then(output: str) -> None:
    often, seldom = lease.Watch(output, "first", seconds=0), lease.Watch(output, "first", seconds=1000)
    with lease.hold(output, "first"):
        before = retries.counts()["requests"]
        seldom.check()
        asked = retries.counts()["requests"] - before
        for _ in range(100):
            seldom.check()
        assert retries.counts()["requests"] - before == asked == (0 if storage.is_local(output) else 1)
        often.check()
    with lease.hold(output, "second"):
        seldom.check()
        with pytest.raises(LeaseLostError, match="attempt first no longer holds the output, attempt second"):
            often.check()


def test_the_heartbeat_goes_on(output: str) -> None:
    url = storage.join(output, "_LEASE")
    with lease.hold(output, heartbeat=0.1, good_for=30):
        first = storage.read_json(url)
        wait_for(lambda: storage.read_json(url)["heartbeat"] > first["heartbeat"], 20, "heartbeat")
        assert {**storage.read_json(url), "heartbeat": ""} == {**first, "heartbeat": ""}


@pytest.mark.parametrize(("heartbeat", "good_for"), [(0.0, 1.0), (10.0, 10.0)])
def test_senseless_times_are_refused(tmp_path: Path, heartbeat: float, good_for: float) -> None:
    with (
        pytest.raises(ValueError, match=f"heartbeat = {heartbeat:g}: .* good_for = {good_for:g}"),
        lease.hold(str(tmp_path), heartbeat=heartbeat, good_for=good_for),
    ):
        pass


def test_a_second_run_is_refused(output: str, start: type[Run]) -> None:
    first = start(output, "first")
    assert first.step() == "held"
    with (
        pytest.raises(
            ValueError, match=rf"attempt first .*\(process {first.process.pid}\) writes to .* since 20.*runs out"
        ),
        lease.hold(output, "second"),
    ):
        pass
    lease.check(output, "first")
    assert first.step() == "released"
    with lease.hold(output, "second"):
        lease.check(output, "second")


def test_a_file_that_is_no_lease_is_named(tmp_path: Path) -> None:
    (tmp_path / "_LEASE").write_text("something")
    with pytest.raises(ValueError, match=r"_LEASE is not a lease .*remove it"), lease.hold(str(tmp_path)):
        pass


def test_after_a_kill_the_same_host_goes_on_at_once(output: str, start: type[Run]) -> None:
    first = start(output, "first", 600.0)
    assert first.step() == "held"
    first.process.send_signal(signal.SIGKILL)
    # Not waited for: a process that ended and is still listed is gone, too.
    wait_for(lambda: not lease._process(first.process.pid), 20, "end of the process")
    with lease.hold(output, "second"):
        lease.check(output, "second")


def test_another_process_with_the_same_id_is_not_the_holder(tmp_path: Path) -> None:
    with lease.hold(str(tmp_path), "first"):
        written = storage.read_json(str(tmp_path / "_LEASE"))
    boot, namespace, began = written["process"].split()
    storage.write_json(str(tmp_path / "_LEASE"), {**written, "process": f"{boot} {namespace} {int(began) - 1}"})
    with lease.hold(str(tmp_path), "second"):
        pass


@pytest.mark.parametrize("part", ["host", "boot", "namespace"])
def test_a_process_elsewhere_is_not_taken_for_dead(tmp_path: Path, part: str) -> None:
    with lease.hold(str(tmp_path), "first"):
        written = storage.read_json(str(tmp_path / "_LEASE"))
    boot, namespace, began = written["process"].split()
    elsewhere = {
        "host": {"host": "another"},
        "boot": {"process": f"another {namespace} {began}"},
        "namespace": {"process": f"{boot} pid:[1] {began}"},
    }[part]
    storage.write_json(str(tmp_path / "_LEASE"), {**written, "pid": 2**22 + 1, **elsewhere})
    with pytest.raises(ValueError, match="attempt first"), lease.hold(str(tmp_path), "second"):
        pass


def test_a_stopped_heartbeat_is_taken_over_after_its_time(left: Left) -> None:
    assert "attempt first" in left.refused
    left.wait(4.5)
    with lease.hold(left.lost, "second"):
        lease.check(left.lost, "second")


def test_where_the_store_tells_no_time_the_lease_is_watched() -> None:
    output = f"memory://runs/{uuid.uuid4().hex}"
    elsewhere(output, 1.0)
    begun = time.monotonic()
    with lease.hold(output, "second", heartbeat=0.1, good_for=30):
        # Its owner is this process, which lives, but not on this host.
        assert time.monotonic() - begun >= 1.0
        written = storage.read_json(storage.join(output, "_LEASE"))
        storage.write_json(storage.join(output, "_LEASE"), {**written, "host": "another", "heartbeat": "later"})
        beats = threading.Thread(target=_beat, args=(output,))
        beats.start()
        with pytest.raises(ValueError, match="attempt second"), lease.hold(output, "third"):
            pass
        beats.join()


def _beat(output: str) -> None:
    url = storage.join(output, "_LEASE")
    for number in range(3):
        time.sleep(0.5)
        storage.write_json(url, {**storage.read_json(url), "heartbeat": str(number)})


def test_of_two_takers_at_once_one_wins(left: Left, start: type[Run]) -> None:
    takers = [start(left.taken, "a", 600.0), start(left.taken, "b", 600.0)]
    assert storage.exists(storage.join(left.taken, "_LEASE"))
    left.wait(2.5)
    # A stopped lease is there; then nothing is.
    for _ in range(2):
        for taker in takers:
            taker.tell()
        said = [taker.line().partition(" ")[0] for taker in takers]
        assert sorted(said) == ["ValueError", "held"]
        lease.check(left.taken, "ab"[said.index("held")])
        assert takers[said.index("held")].step() == "released"
        assert storage.list_files(left.taken) == []


def test_an_owner_that_wakes_up_finds_that_it_lost(left: Left) -> None:
    left.wait(3.5)
    with lease.hold(left.slept, "second"):
        left.sleeper.process.send_signal(signal.SIGCONT)
        assert left.sleeper.step().startswith("LeaseLostError")
        # Its release has left the other's lease alone.
        lease.check(left.slept, "second")


def test_a_lease_that_cannot_be_renewed_is_not_held(behind: Proxy) -> None:
    output = f"s3://runs/{uuid.uuid4().hex}"
    retries.use(retries.Retries(attempts=1))
    try:
        with lease.hold(output, heartbeat=0.1, good_for=1.0) as held:
            held.check()
            behind.faults = Faults(error=1.0)
            time.sleep(1.5)
            with pytest.raises(LeaseLostError, match=r"could not renew its lease for 1 s.*InternalError"):
                held.check()
            # Nobody took it: once the store answers, it is held again.
            behind.faults = Faults()
            held.check()
            behind.faults = Faults(error=1.0)
    finally:
        retries.use(None)
        behind.faults = Faults()


def test_nothing_but_ids_is_in_a_lease(tmp_path: Path) -> None:
    with lease.hold(str(tmp_path)):
        written = json.loads((tmp_path / "_LEASE").read_text())
    assert set(written) == {"attempt", "host", "pid", "process", "started", "heartbeat", "good_for"}


@pytest.mark.parametrize(
    ("place", "reason"), [("file", "File exists|Not a directory"), ("file/run", "Not a directory")]
)
def test_an_output_that_cannot_be_written_to_is_refused_by_its_name(place: str, reason: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with (
        pytest.raises(ValueError, match=f"{tmp_path}/{place} cannot be written to: ({reason})"),
        lease.hold(str(tmp_path / place)),
    ):
        pass
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.skipif(sys.platform != "linux", reason="/proc is of Linux")
def test_an_output_whose_folder_cannot_be_made_is_refused_by_its_name() -> None:
    with pytest.raises(ValueError, match="/proc/run cannot be written to: No such file"), lease.hold("/proc/run"):
        pass


def test_a_disk_that_is_full_or_read_only_is_refused_as_such(tmp_path: Path) -> None:
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "raypurify", str(tmp_path)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("this user cannot mount a file system")
    try:
        (tmp_path / "filler").write_bytes(b"0" * (64 << 10))
        with pytest.raises(ValueError, match="cannot be written to: No space left"), lease.hold(str(tmp_path / "run")):
            pass
        subprocess.run(["mount", "-o", "remount,ro", str(tmp_path)], check=True)
        with pytest.raises(ValueError, match="cannot be written to: Read-only"), lease.hold(str(tmp_path / "other")):
            pass
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)
