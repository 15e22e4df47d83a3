"""What large jobs cost, and how long they take: the planning table of cluster/README.md.

    python cluster/costs.py                                # the table
    python cluster/costs.py --machines 64 --spot 0.4       # with more machines, at 0.4 of the prices

It multiplies. The rates of cores are measured (benchmarks/rates.py); that of the GPU follows from a public figure; the
prices are list prices of November 2026, to be looked up before you rely on them. What one machine of yours does in a
second is told by ``--dry-run`` there.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, replace


@dataclass(frozen=True, kw_only=True)
class Machine:
    """A worker of a cluster."""

    name: str
    price: float
    """Dollars an hour."""
    cpus: int
    gpu: float = 0
    """Multiplications that its GPU does in a second; 0 for a machine without one."""


@dataclass(frozen=True, kw_only=True)
class Work:
    """A job, by what it does for an image."""

    name: str
    images: int
    network: float
    """CPU seconds of networks."""
    multiplications: float
    """What the networks multiply, on a GPU in place of ``network``."""
    files: float
    """CPU seconds that reading, decoding, encoding and writing take, on any machine."""
    gets: float
    puts: float
    """Requests to the object store."""

    def machine_seconds(self, machine: Machine) -> float:
        """Seconds that one machine takes for an image; a GPU computes while the CPUs read and write."""
        if not machine.gpu:
            return (self.network + self.files) / machine.cpus
        return max(self.multiplications / machine.gpu, self.files / machine.cpus)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a job comes to on some machines."""

    images_per_second: float
    hours: float
    machines: float
    """Dollars for the machines and the head."""
    requests: float
    """Dollars for requests to the object store."""


CLEANING = 1 / 8.9
"""CPU seconds for an image of 256x256 by CRU-Net, of width 16, with decoding and encoding (benchmarks/rates.py)."""
FILES = 1 / 61
"""The part of it that is no network: by the identity (benchmarks/rates.py)."""
GRADIENT = 1 / 4.5
"""CPU seconds for an image of 224x224 through ResNet-50 and back (benchmarks/rates.py)."""
RESNET50, CRU_NET = 4.09e9, 3.90e9
"""Multiplications of a forward pass, at 224x224 and at 256x256; a gradient of the input takes as many again."""
L4 = 903 * 1.82e9
"""Multiplications a second of an L4: 903 images/s of ResNet-18, Ray's own benchmark of batch inference."""
GRADIENTS = {"FGSM": 1, "R-FGSM": 1, "PGD": 40, "DeepFool": 25, "Carlini-Wagner": 732, "stAdv": 200}
"""Gradients that an attack takes for an image, by its defaults; where an attack ends early, about what it takes."""
FORWARDS = 6 * 4
"""Passes forward beside them: for each attack the attacked image and the purified one, and the purifier (two)."""
GET, PUT = 0.0004 / 1000, 0.005 / 1000
"""Dollars for a request to S3."""
UNIT = 500
"""Images of a unit, which may be one file of the output."""
EFFICIENCY = 0.9
"""Share of their rate that machines reach, start and end of the job and the way through Ray taken together."""
BOOT = 0.1
"""Hours until the machines are there."""

MACHINES = (
    Machine(name="c7i.4xlarge, 16 CPUs", price=0.71, cpus=16),
    Machine(name="g6.2xlarge, 8 CPUs, an L4", price=0.98, cpus=8, gpu=L4),
)
HEAD = 0.20


def jobs() -> tuple[Work, ...]:
    """The jobs of the table."""
    cleaning = Work(
        name="clean 100 M images of 256x256, a file each",
        images=100_000_000,
        network=CLEANING - FILES,
        multiplications=CRU_NET,
        files=FILES,
        gets=1,
        puts=1,
    )
    gradients = sum(GRADIENTS.values())
    evaluation = Work(
        name="ImageNet's 50,000 on ResNet-50 under six attacks",
        images=50_000,
        network=gradients * GRADIENT + FORWARDS * GRADIENT / 2,
        multiplications=(2 * gradients + FORWARDS) * RESNET50,
        files=FILES,
        gets=1,
        puts=6 / UNIT,
    )
    in_shards = replace(cleaning, name="the same, in shards of 500", gets=1 / UNIT, puts=1 / UNIT)
    return cleaning, in_shards, evaluation


def planned(work: Work, machine: Machine, count: int, *, head: float, spot: float) -> Plan:
    """What a job comes to.

    Args:
        work: the job.
        machine: of which kind the machines are.
        count: how many.
        head: dollars an hour of the head.
        spot: share of their price that the machines cost.
    """
    rate = count * EFFICIENCY / work.machine_seconds(machine)
    hours = work.images / rate / 3600 + BOOT
    return Plan(
        images_per_second=rate,
        hours=hours,
        machines=hours * (count * machine.price * spot + head),
        requests=work.images * (work.gets * GET + work.puts * PUT),
    )


def table(machines: Sequence[Machine], count: int, *, head: float, spot: float) -> str:
    """The planning table, in Markdown."""
    lines = [
        f"| job | on {count} machines of | images/s | hours | for machines | for requests |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for work in jobs():
        for machine in machines:
            plan = planned(work, machine, count, head=head, spot=spot)
            dollars = f"${plan.machines:,.0f} | ${plan.requests:,.0f}"
            rate = f"{plan.images_per_second:,.{0 if plan.images_per_second >= 100 else 1}f}"
            figures = f"{rate} | {plan.hours:.1f} | {dollars}"
            lines.append(f"| {work.name} | {machine.name} | {figures} |")
    return "\n".join(lines)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--machines", type=int, default=32, help="how many machines work")
    parser.add_argument("--spot", type=float, default=1.0, help="share of the list price that machines cost")
    parser.add_argument("--head", type=float, default=HEAD, help="dollars an hour of the head")
    parser.add_argument("--cpu-price", type=float, default=MACHINES[0].price, help="dollars an hour of c7i.4xlarge")
    parser.add_argument("--gpu-price", type=float, default=MACHINES[1].price, help="dollars an hour of g6.2xlarge")
    options = parser.parse_args()
    prices = (options.cpu_price, options.gpu_price)
    machines = [replace(machine, price=price) for machine, price in zip(MACHINES, prices, strict=True)]
    print(table(machines, options.machines, head=options.head, spot=options.spot))


if __name__ == "__main__":
    main()
