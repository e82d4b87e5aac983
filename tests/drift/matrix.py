"""The entries of the matrix, and what becomes of them on a host."""

from __future__ import annotations

import json
import random
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from r1prov import lab

if TYPE_CHECKING:
    from r1prov.lab.hosts import LabHost
    from tests.e2e.people import Operator

_NAMES = re.compile(
    r"r1prov[-_][a-z-]*[a-z]|numpy|nginx|cmake|ninja|gcc|nft\b|netns|gguf|/opt/r1prov|/srv/r1prov|/var/lib/r1prov|/usr/local/bin"
)
_NETWORK = re.compile(r"ip netns|ip -n |systemctl \S+ r1prov-network|rm -r /etc/r1prov$")
_STARTER = re.compile(r"/usr/local/lib/r1prov-(?:\*|await-ready)")
_UNREAD = re.compile(r"systemd has not read its files")
_READING = re.compile(r"systemctl (?:daemon-reload|enable|disable|mask|unmask|edit|set-property|preset|revert)")
_PROCESS = re.compile(r"systemctl (?:start|restart|stop|kill|freeze)|systemd-run|/proc/")

RESULT = Path(__file__).parent / "last-result-bookworm.json"


@dataclass(frozen=True)
class Mutation:
    """One thing put wrong.

    Attributes:
        name: what it is called here.
        do: a line of shell that does it.
        says: a pattern of what a run must say about it.
        healed: a line of shell that ends well when it is as it was.
        stays: whether it is an administrator's own, which a run names and leaves. `healed` then takes it away.
        remedy: what a run that refuses tells an administrator to do; empty where a run heals it.
    """

    name: str
    do: str
    says: str
    healed: str
    stays: bool = False
    remedy: str = ""

    @property
    def about(self) -> set[str]:
        """What it concerns. Two mutations of one thing may hide each other."""
        named = set(_NAMES.findall(f"{self.do} {self.says}".replace("g++", "gcc")))
        return named | {"nft"} if self._of_network else named  # Only nft tells of its rules.

    def hides(self, other: Mutation) -> bool:
        """Whether it may hide another one or be hidden by it, if both are tried in one run.

        All services live in the private network. One that is started anew may start the network, which has its rules again then, and a
        network that goes takes the services with it. Nor does any service start without the program that waits for it.
        What systemd has not read yet, it reads with whatever else it is told to read.
        """
        both = self._of_network and other._of_network
        at_once = both or (self._of_starts and other._of_process) or (other._of_starts and self._of_process)
        reads = (self._is_unread and other._reads) or (other._is_unread and self._reads)
        return bool(self.about & other.about) or at_once or reads or bool(self.remedy or other.remedy)

    @property
    def _of_network(self) -> bool:
        return _NETWORK.search(self.do) is not None

    @property
    def _of_starts(self) -> bool:
        return self._of_network or _STARTER.search(self.do) is not None

    @property
    def _is_unread(self) -> bool:
        return _UNREAD.search(self.says) is not None

    @property
    def _reads(self) -> bool:
        return _READING.search(self.do) is not None

    @property
    def _of_process(self) -> bool:
        return _PROCESS.search(self.do) is not None


@dataclass(frozen=True)
class Told:
    """What `r1prov drift` says of a host.

    Attributes:
        clean: whether nothing differs, and all was told.
        text: all that it says.
    """

    clean: bool
    text: str


@dataclass(frozen=True)
class Outcome:
    """What became of a mutation.

    Attributes:
        name: of the mutation.
        batch: the number of its batch. Mutations of a batch are tried together.
        commit: of r1prov as it was tried.
        applied: whether it had an effect.
        found: whether `r1prov drift` named it.
        named: whether `r1prov up` did.
        foretold: whether `r1prov drift` had said all that the run put right, as far as its whole batch is concerned.
        healed: whether it was as before afterwards.
        quiet: whether `r1prov drift` found nothing afterwards, as far as its whole batch is concerned.
    """

    name: str
    batch: int
    commit: str
    applied: bool
    found: bool
    named: bool
    foretold: bool
    healed: bool
    quiet: bool

    @property
    def well(self) -> bool:
        """Whether all of that was as it should be."""
        return self.applied and self.found and self.named and self.foretold and self.healed and self.quiet


def matrix(*files: str) -> list[Mutation]:
    """The entries of these files; of all where none is named."""
    texts = [(Path(__file__).parent / name).read_text() for name in files or ("matrix.yml", "more.yml")]
    return [Mutation(**entry) for text in texts for entry in yaml.safe_load(text)]


def batches(mutations: list[Mutation], size: int) -> list[list[Mutation]]:
    """Mutations in groups that may be tried in one run."""
    found: list[list[Mutation]] = []
    for each in mutations:
        fitting = (batch for batch in found if len(batch) < size and not any(each.hides(other) for other in batch))
        batch = next(fitting, None)
        if batch is None:
            found.append([each])
        else:
            batch.append(each)
    return found


def sample(seed: int, count: int) -> list[Mutation]:
    """So many mutations of one batch. It is a batch of the kept run in which all went well, so no mutation in it hides another.

    Those upon which a run refuses and tells a person what to do are left to `make drift`.
    """
    known = {each.name: each for each in matrix()}
    kept = [Outcome(**outcome) for outcome in json.loads(RESULT.read_text())["outcomes"]]
    good: dict[int, list[Mutation]] = {}
    for each in kept:
        good.setdefault(each.batch, []).append(known[each.name])
    bad = {each.batch for each in kept if not each.well or known[each.name].remedy}
    whole = [batch for number, batch in good.items() if number not in bad and len(batch) >= count]
    return random.Random(seed).choice(whole)[:count]


def apply(host: LabHost, mutations: list[Mutation]) -> dict[str, bool]:
    """Put all of these wrong. Returns of each whether that had an effect: it is not as it should be any more."""
    for each in mutations:
        lab.ssh(host, ["sh", "-c", each.do], timeout_s=120)
    return {each.name: each.stays or not is_well(host, each) for each in mutations}


def is_well(host: LabHost, mutation: Mutation) -> bool:
    """Whether it is as it should be."""
    return lab.ssh(host, ["sh", "-c", mutation.healed], timeout_s=120).returncode == 0


def drifted(operator: Operator, host: LabHost) -> Told:
    """What `r1prov drift` says of a host now."""
    done = operator.run("drift", "--json")
    try:
        found = json.loads(done.stdout)["hosts"][host.name]
    except (ValueError, KeyError):
        return Told(clean=False, text=f"{done.stdout}\n{done.stderr}")
    differences = found["differences"]
    words = [*(each["what"] for each in differences), *found["stays"], found["unknown"]]
    return Told(clean=found["state"] == "as wanted", text="\n".join(words).strip())


def outcomes(
    host: LabHost,
    mutations: list[Mutation],
    applied: dict[str, bool],
    told: Told,
    report: dict[str, Any],
    after: Told,
    batch: int = 0,
    commit: str = "",
) -> list[Outcome]:
    """What became of mutations.

    Args:
        host: where they were tried.
        mutations: all that were tried in one run.
        applied: of each, whether it had an effect.
        told: what a look said before the run.
        report: of the run.
        after: what a look said after the run.
        batch: the number of their batch.
        commit: of r1prov as it is.
    """
    text = said(report)
    foretold = not surprises(host, told, report)
    return [
        Outcome(
            each.name,
            batch,
            commit,
            applied[each.name],
            re.search(each.says, told.text) is not None,
            re.search(each.says, text) is not None,
            foretold,
            is_well(host, each),
            after.clean,
        )
        for each in mutations
    ]


def surprises(host: LabHost, told: Told, report: dict[str, Any]) -> set[str]:
    """What a run put right on a host although no look had said it."""
    return set(report["hosts"][host.name]["differences"]) - set(told.text.splitlines())


def said(report: dict[str, Any]) -> str:
    """All that a run says of its hosts."""
    hosts = report["hosts"].values()
    words = [text for host in hosts for key in ("differences", "warnings") for text in host.get(key, [])]
    words += [each["what"] for host in hosts for each in (host.get("looked") or {}).get("differences", [])]
    return "\n".join([*words, *(str(problem) for host in hosts for problem in host["problems"])])
