"""The entries of the matrix, and what becomes of them on a host."""

from __future__ import annotations

import random
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from r1prov import lab

if TYPE_CHECKING:
    from r1prov.lab.hosts import LabHost

_NAMES = re.compile(r"r1prov[-_][a-z-]*[a-z]|numpy|nginx|cmake|ninja|gcc|nft\b|/opt/r1prov|netns|/var/lib/r1prov")


@dataclass(frozen=True)
class Mutation:
    """One thing put wrong.

    Attributes:
        name: what it is called here.
        do: a line of shell that does it.
        says: a pattern of what a run must say about it.
        healed: a line of shell that ends well when it is as it was.
        stays: whether it is an administrator's own, which a run names and leaves. `healed` then takes it away.
    """

    name: str
    do: str
    says: str
    healed: str
    stays: bool = False

    @property
    def about(self) -> set[str]:
        """What it concerns. Two mutations of one thing may hide each other."""
        return set(_NAMES.findall(f"{self.do} {self.says}"))


@dataclass(frozen=True)
class Outcome:
    """What became of a mutation: whether it had an effect, whether the run named it, and whether it was as before afterwards."""

    name: str
    applied: bool
    named: bool
    healed: bool


def matrix() -> list[Mutation]:
    """All entries of matrix.yml."""
    entries = yaml.safe_load((Path(__file__).parent / "matrix.yml").read_text())
    return [Mutation(**entry) for entry in entries]


def batches(mutations: list[Mutation], size: int) -> list[list[Mutation]]:
    """Mutations in groups that may be tried in one run."""
    found: list[list[Mutation]] = []
    for each in mutations:
        fitting = (
            batch for batch in found if len(batch) < size and not any(each.about & other.about for other in batch)
        )
        batch = next(fitting, None)
        if batch is None:
            found.append([each])
        else:
            batch.append(each)
    return found


def sample(seed: int, count: int) -> list[Mutation]:
    """As many mutations, which may be tried in one run."""
    mutations = matrix()
    random.Random(seed).shuffle(mutations)
    return batches(mutations, count)[0]


def apply(host: LabHost, mutations: list[Mutation]) -> dict[str, bool]:
    """Put all of these wrong. Returns of each whether that had an effect: it is not as it should be any more."""
    for each in mutations:
        lab.ssh(host, ["sh", "-c", each.do], timeout_s=120)
    return {each.name: each.stays or not is_well(host, each) for each in mutations}


def is_well(host: LabHost, mutation: Mutation) -> bool:
    """Whether it is as it should be."""
    return lab.ssh(host, ["sh", "-c", mutation.healed], timeout_s=120).returncode == 0


def outcomes(
    host: LabHost, mutations: list[Mutation], applied: dict[str, bool], report: dict[str, Any]
) -> list[Outcome]:
    """What became of mutations, after a run with this report."""
    told = said(report)
    return [
        Outcome(each.name, applied[each.name], re.search(each.says, told) is not None, is_well(host, each))
        for each in mutations
    ]


def said(report: dict[str, Any]) -> str:
    """All that a run says of its hosts."""
    hosts = report["hosts"].values()
    words = [text for host in hosts for key in ("differences", "warnings", "changes") for text in host.get(key, [])]
    return "\n".join([*words, *(str(problem) for host in hosts for problem in host["problems"])])
