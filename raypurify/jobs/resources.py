"""Who does the work of a job: the flags that say so, and what they ask of a cluster."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from raypurify.data import BATCH_PIXELS, batch_size
from raypurify.runs import fields
from raypurify.training.arithmetic import compute_on_cpus


@dataclass(frozen=True, kw_only=True)
class Needs:
    """What a job asks of a cluster: so many actors or workers, each on one node."""

    kind: Literal["actor", "worker"]
    count: int
    cpus: int
    """CPUs of each actor or worker."""
    gpus: float = 0
    """GPUs of each actor or worker."""
    custom: Mapping[str, float] = field(default_factory=dict)
    """What each takes of resources that nodes declare under names of their own."""

    @property
    def all_cpus(self) -> int:
        return self.count * self.cpus

    @property
    def asked(self) -> dict[str, float]:
        """What each takes, by the resource's name."""
        return {"CPU": self.cpus, **({"GPU": self.gpus} if self.gpus else {}), **self.custom}

    def room(self, nodes: Sequence[Mapping[str, float]]) -> int:
        """How many of them fit into nodes with these resources."""
        # Ray counts in ten-thousandths; in floats 0.3 holds 0.1 only twice.
        return sum(min(int(node.get(name, 0) / each + 1e-6) for name, each in self.asked.items()) for node in nodes)

    def left(self, nodes: Sequence[Mapping[str, float]]) -> Sequence[Mapping[str, float]]:
        """What is left of nodes with these resources, once as many of them as fit, and are asked for, are placed."""
        left, unplaced = [], self.count
        for node in nodes:
            here = min(self.room([node]), unplaced)
            unplaced -= here
            left.append({name: amount - here * self.asked.get(name, 0) for name, amount in node.items()})
        return left

    def check(self, nodes: Sequence[Mapping[str, float]], *, grows: bool) -> str | None:
        """Hold them against the nodes of a cluster; a line that says what is waited for, where it has to grow first.

        Args:
            nodes: resources of each node.
            grows: whether the cluster has an autoscaler.

        Raises:
            ValueError: they do not fit, and the cluster will not grow; gives the figures and the flag that helps.
        """
        if self.room(nodes) >= self.count:
            return None
        if grows:
            return f"waiting for the cluster to grow: {self._beside(nodes)}"
        raise self.refusal(nodes)

    def refusal(self, nodes: Sequence[Mapping[str, float]], why: str = "") -> ValueError:
        """What is raised where they do not fit into nodes with these resources; ``why`` more will not come."""
        room, largest = self.room(nodes), max((node.get("CPU", 0) for node in nodes), default=0)
        advice = self._advice(room, largest, sum(node.get("GPU", 0) for node in nodes))
        return ValueError(f"{self._beside(nodes)}{why}. Give {advice}, or join a larger cluster")

    def _beside(self, nodes: Sequence[Mapping[str, float]]) -> str:
        """The needs, beside what a cluster of these nodes has."""
        cpus, gpus = (sum(node.get(name, 0) for node in nodes) for name in ("CPU", "GPU"))
        declared = "".join(f", {sum(node.get(name, 0) for node in nodes):g} {name}" for name in self.custom)
        largest = max((node.get("CPU", 0) for node in nodes), default=0)
        return (
            f"{self.told()} are asked for; this Ray cluster has {cpus:g} CPU(s) and {gpus:g} GPU(s){declared} on "
            f"{len(nodes)} node(s), {largest:g} CPU(s) on the largest: room for {self.room(nodes)}"
        )

    def told(self) -> str:
        """The needs, in words."""
        each = f"{self.cpus} CPU(s)" + (f" and {self.gpus:g} GPU(s)" if self.gpus else "")
        each += "".join(f" and {amount:g} {name}" for name, amount in self.custom.items())
        return f"{self.count} {self.kind}(s) of {each} each"

    def _advice(self, room: int, largest: float, gpus: float) -> str:
        if not room and self.custom:
            return "no --actor-resources"
        if self.gpus and not gpus:
            return "no --use-gpu" if self.kind == "worker" else "--gpus-per-actor 0"
        if room and self.kind == "worker":
            return f"--workers {2 ** (room.bit_length() - 1)}"
        if room:
            return f"--actors {room}"
        return f"--cpus-per-{self.kind} {max(1, int(largest))}" + (f" --{self.kind}s 1" if self.count > 1 else "")


@dataclass(frozen=True, kw_only=True)
class ActorPool:
    """Who does the work. None of it changes what is computed, beyond rounding.

    An attack whose result depends on its batch (those of torchattacks) is another one with another ``batch``.
    """

    actors: int = 2
    """How many actors compute; the pool starts with this number."""
    max_actors: int | None = None
    """The pool grows to this number of actors where the cluster has room or makes room. The default is ``actors``."""
    cpus_per_actor: int = 1
    """Each actor takes this number of CPUs, and computes with as many threads."""
    gpus_per_actor: float = 0
    """Each actor takes this number of GPUs. With 0.5, one actor computes while the other reads and writes."""
    actor_resources: tuple[str, ...] = ()
    """Each actor takes these custom resources, NAME=AMOUNT each. So actors run on nodes that declare them, such as
    those that ray start --resources has started."""
    read_cpus: float = 0.5
    """With --reads apart, a task that reads and decodes takes this number of CPUs. With 0, and where the actors leave
    no CPU free, such tasks wait for no CPU, and two run at a time."""
    reads: Literal["fused", "apart"] = "fused"
    """fused: an actor reads its own images. This is best where all share CPUs. apart: tasks on CPUs read and decode
    ahead. This is best for actors on GPUs."""
    batch: int = 250
    """How many images go through the networks at once. Another number changes the last bit of float32 sums."""
    batch_pixels: int = BATCH_PIXELS
    """Fewer images go through the networks at once where they would have more pixels (height times width) than this, in
    all. An adaptive attack on CRU-Net takes about 3 KiB a pixel; a GPU with room is faster with more."""
    local: bool = False
    """Work in this process, in plain torch, without Ray: one unit after the other, with the threads of all actors."""

    def __post_init__(self) -> None:
        fields.check_choices(self)
        ones = dict.fromkeys(("actors", "cpus_per_actor", "batch", "batch_pixels"), 1)
        for name, least in {**ones, "gpus_per_actor": 0, "read_cpus": 0}.items():
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}; got {getattr(self, name)!r}")
        _amounts(self.actor_resources)
        if self.max_actors is not None and self.max_actors < self.actors:
            raise ValueError(f"max_actors must be at least actors={self.actors}; got {self.max_actors!r}")

    @property
    def needs(self) -> Needs:
        """What the pool starts with; this process, where it does the work, is one actor with the CPUs of all."""
        count = 1 if self.local else self.actors
        custom = {} if self.local else self.custom
        return Needs(kind="actor", count=count, cpus=self.threads, gpus=self.gpus_per_actor, custom=custom)

    @property
    def most(self) -> int:
        """To how many actors the pool may grow; this process is one."""
        return 1 if self.local else self.max_actors or self.actors

    @property
    def custom(self) -> dict[str, float]:
        """``actor_resources``, by name."""
        return _amounts(self.actor_resources)

    @property
    def device(self) -> str:
        """The device of an actor's networks."""
        return "cuda" if self.gpus_per_actor > 0 else "cpu"

    @property
    def threads(self) -> int:
        """How many threads of arithmetic a process that does the work has."""
        return self.actors * self.cpus_per_actor if self.local else self.cpus_per_actor

    @property
    def batching(self) -> dict[str, int]:
        """What says which images share a batch, for the identity of a run; the usual pixels are not named."""
        pixels = {} if self.batch_pixels == BATCH_PIXELS else {"batch_pixels": self.batch_pixels}
        return {"batch": self.batch, **pixels}

    def batch_for(self, shape: tuple[int, ...]) -> int:
        """How many images (H, W, C) go through the networks at once."""
        return batch_size(self.batch, self.batch_pixels, shape)

    def set_threads(self) -> None:
        """Let this process compute with its threads."""
        if self.device == "cpu":
            compute_on_cpus(self.threads)


@dataclass(frozen=True, kw_only=True)
class StagePools:
    """Pools of an evaluation's stages. None of it changes what is computed."""

    stages: Literal["fused", "apart"] = "fused"
    """fused: an actor attacks, purifies and classifies its images, best where all stages want the same machines. apart:
    pools of their own attack and purify, and hand the images on; the actors classify and write."""
    attack_actors: int = 1
    """Actors that attack, where stages run apart."""
    attack_max_actors: int | None = None
    attack_cpus: int = 1
    attack_gpus: float = 0
    attack_resources: tuple[str, ...] = ()
    """As --actor-resources, of an actor that attacks."""
    purify_actors: int = 1
    """Actors that purify, where stages run apart."""
    purify_max_actors: int | None = None
    purify_cpus: int = 1
    purify_gpus: float = 0
    purify_resources: tuple[str, ...] = ()
    """As --actor-resources, of an actor that purifies."""

    def __post_init__(self) -> None:
        fields.check_choices(self)
        self.apart(ActorPool())

    def apart(self, last: ActorPool) -> dict[str, ActorPool]:
        """The pools of the stages attack and purify, where they run apart.

        Args:
            last: those who classify.

        Raises:
            ValueError: see :class:`ActorPool`.
        """
        if self.stages == "fused" or last.local:
            return {}
        return {stage: self._pool(stage, last) for stage in ("attack", "purify")}

    def _pool(self, stage: str, last: ActorPool) -> ActorPool:
        """The pool of a stage, by the flags that begin with its name; batches are those of ``last``."""
        flags = ("actors", "max_actors", "cpus", "gpus", "resources")
        actors, max_actors, cpus, gpus, resources = (getattr(self, f"{stage}_{flag}") for flag in flags)
        return ActorPool(
            actors=actors,
            max_actors=max_actors,
            cpus_per_actor=cpus,
            gpus_per_actor=gpus,
            actor_resources=resources,
            batch=last.batch,
            batch_pixels=last.batch_pixels,
        )


@dataclass(frozen=True, kw_only=True)
class TrainingResources:
    """Who does the work. None of it changes what is computed, but for rounding."""

    workers: int = 1
    """How many data-parallel workers train; they divide the batch. Batch norms and dropouts of torch.nn see the global
    batch, so any number trains the same network."""
    max_workers: int | None = None
    """The group of workers grows to this number where the cluster has room or makes room, and shrinks to ``workers``
    where nodes are lost. Each time it goes on from the last checkpoint. The default is ``workers``."""
    use_gpu: bool = False
    """Each worker computes on a GPU of its own (nccl) instead of on CPUs (gloo)."""
    cpus_per_worker: int = 2
    """Each worker takes this number of CPUs, and computes with as many threads."""
    read_cpus: float = 0.5
    """A task that reads images takes this number of CPUs, or this share of one. With 0, and where the workers leave no
    CPU free, such tasks wait for no CPU, and two run at a time."""
    max_failures: int = 3
    """The run survives the loss of this number of workers. Each time it goes on from the last checkpoint."""
    checkpoint_minutes: float = 10
    """After each epoch there is a checkpoint. Within a longer epoch there is also one each time this number of minutes
    has passed."""
    local: bool = False
    """Train in this process, in plain torch, without Ray. This process is the only worker."""

    def __post_init__(self) -> None:
        if self.workers < 1:
            raise ValueError(f"workers must be at least 1; got {self.workers!r}")
        if self.cpus_per_worker < 1 or self.read_cpus < 0:
            raise ValueError(
                "cpus_per_worker must be at least 1, read_cpus at least 0; "
                f"got {self.cpus_per_worker}, {self.read_cpus}"
            )
        if self.checkpoint_minutes < 0:
            raise ValueError(f"checkpoint_minutes must be at least 0; got {self.checkpoint_minutes!r}")
        if self.max_workers is not None and self.max_workers < self.workers:
            raise ValueError(f"max_workers must be at least workers={self.workers}; got {self.max_workers!r}")
        if self.local and (self.workers > 1 or self.max_workers is not None):
            raise ValueError(
                f"workers: with local this process is the only one; got {self.workers!r}, max_workers "
                f"{self.max_workers!r}"
            )

    @property
    def needs(self) -> Needs:
        """What the workers take."""
        gpus = 1 if self.use_gpu else 0
        return Needs(kind="worker", count=self.workers, cpus=self.cpus_per_worker, gpus=gpus)

    @property
    def numbers(self) -> range:
        """The numbers of workers that may train together."""
        return range(self.workers, (self.max_workers or self.workers) + 1)

    @property
    def device(self) -> str:
        """The device of a worker's network."""
        return "cuda" if self.use_gpu else "cpu"

    def set_threads(self) -> None:
        """Let this process compute with as many threads as a worker has."""
        if self.device == "cpu":
            compute_on_cpus(self.cpus_per_worker)


def _amounts(texts: Sequence[str]) -> dict[str, float]:
    """Custom resources by name, from NAME=AMOUNT each.

    Raises:
        ValueError: it is something else, or a resource that has a flag of its own.
    """
    amounts = {}
    for text in texts:
        name, _, amount = text.partition("=")
        try:
            amounts[name] = float(amount)
        except ValueError:
            amounts[name] = 0
        if not name or name in ("CPU", "GPU", "memory") or not 0 < amounts[name] < float("inf"):
            raise ValueError(f"actor_resources: expected NAME=AMOUNT, a name of your own and more than 0; got {text!r}")
    return amounts


GPU_BATCH, GPU_BATCH_PIXELS = 1000, 1 << 20
"""What the GPUs of a :class:`Crew` take at once: a thousand images of up to 32x32."""


@dataclass(frozen=True, kw_only=True)
class Crew:
    """Flags of a job that is a sequence of trainings, attacks and evaluations."""

    cpus_per_worker: int = 2
    """Each actor or training worker takes this number of CPUs, and computes with as many threads."""
    workers: int = 1
    """How many actors attack and evaluate, and how many workers train."""
    use_gpu: bool = False
    """Each actor and worker takes a GPU."""
    local: bool = False
    """Work in this process, in plain torch, without Ray."""

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if isinstance(value, int) and not isinstance(value, bool) and value < 1:
                raise ValueError(f"{name} must be at least 1; got {value!r}")

    @property
    def pool(self) -> ActorPool:
        """Who attacks and evaluates; on GPUs, which small batches leave idle, in larger ones."""
        return ActorPool(
            actors=self.workers,
            cpus_per_actor=self.cpus_per_worker,
            gpus_per_actor=float(self.use_gpu),
            local=self.local,
            batch=GPU_BATCH if self.use_gpu else ActorPool.batch,
            batch_pixels=GPU_BATCH_PIXELS if self.use_gpu else BATCH_PIXELS,
        )

    @property
    def trainers(self) -> TrainingResources:
        """Who trains."""
        return TrainingResources(
            workers=1 if self.local else self.workers,
            cpus_per_worker=self.cpus_per_worker,
            use_gpu=self.use_gpu,
            local=self.local,
        )
