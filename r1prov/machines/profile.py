"""Profiles: the hardware of one kind of server (GPUs, RAM, CPU, disk), and how it serves a model."""

from __future__ import annotations

import difflib
import re
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import BeforeValidator, Field, PlainSerializer, model_validator

from r1prov.common import documents, paths
from r1prov.common.documents import Keys, OneLine
from r1prov.common.errors import Problem, SiteError
from r1prov.common.units import parse_duration, parse_size
from r1prov.machines.workload import NamedWorkload
from r1prov.models.catalogue import Quant
from r1prov.models.latent import Attention

Bytes = Annotated[
    int,
    BeforeValidator(lambda value: parse_size(str(value))),
    PlainSerializer(lambda n_bytes: f"{n_bytes} B", when_used="json"),
]
"""A number of bytes. YAML and JSON write it with a unit, such as `480 GB`."""

BEST_ON_GPUS = "best-on-gpus"
"""The value of `quant` that stands for the best dynamic quant whose layers all fit on the cards."""

Context = Annotated[int, Field(ge=256)]
"""The number of tokens that a slot remembers. The plan compares it with the context that the model was trained for."""

DEFAULT_CONTEXT = 32_768
"""The tokens of a slot where nobody names a number. A thinking model needs thousands for one answer, and people bring documents."""


def _slots(value: Any) -> int | str:
    found = re.fullmatch(r"\s*(at\s+least\s+)?([0-9]{1,3})\s*", str(value))
    if not found or not 1 <= int(found[2]) <= 64:
        raise ValueError(f"`{value}` is no number of slots: write a number from 1 to 64, or with a floor `at least 8`")
    return f"at least {int(found[2])}" if found[1] else int(found[2])


Slots = Annotated[int | str, BeforeValidator(_slots)]
"""A number of slots, or a floor for it, such as `at least 8`."""

Duration = Annotated[
    int,
    BeforeValidator(lambda value: parse_duration(str(value))),
    PlainSerializer(lambda seconds: f"{seconds}s"),
]
"""A number of seconds. People write it with a unit, such as `15s`."""

KvType = Literal["f32", "f16", "bf16", "q8_0", "q4_0", "q4_1", "q5_0", "q5_1"]


class Link(Keys, frozen=True):
    """The link of PCI Express between the RAM and a card."""

    generation: int = Field(ge=1, le=6)
    """The generation of PCI Express, such as 4. It is the lower one of the card and of its slot."""
    width: Literal[1, 2, 4, 8, 16]
    """The number of lanes."""

    def __str__(self) -> str:
        return f"PCIe {self.generation}.0 x{self.width}"


class Gpus(Keys):
    """The GPUs of a server, which are all of one kind."""

    count: int = Field(ge=1, le=16)
    """The number of cards."""
    name: str
    """The name of the cards, which messages show."""
    memory: Bytes
    """The memory of one card as nvidia-smi counts it, with its unit."""
    compute_capability: str = Field(pattern=r"^\d+\.\d$")
    """The compute capability of the cards, such as `8.9`."""
    link: Link | None = None
    """The link of the first card, through which experts in RAM reach the cards. What a host itself tells outranks it."""

    @property
    def architecture(self) -> str:
        """The architecture in the form that CMAKE_CUDA_ARCHITECTURES takes, such as `89`."""
        return self.compute_capability.replace(".", "")


class Network(Keys, frozen=True):
    """The network between the servers of a pool."""

    gbit_per_s: float = Field(gt=0)
    """What it carries in one direction, in Gbit/s."""
    round_trip_us: int = Field(default=200, ge=1)
    """How long a small message and its answer take, in microseconds (`ping` shows it). TLS takes some 50 of them."""

    def __str__(self) -> str:
        return f"{self.gbit_per_s:g} Gbit/s"


MOST_CARDS = 16
"""The engine's limit of cards (LLAMA_MAX_DEVICES)."""


class Machine(Keys):
    """The hardware of one server, or of each server of a pool."""

    hosts: int = Field(default=1, ge=1, le=16)
    """The number of equal servers that hold one model together, a pool. One of them serves, and the others lend it their cards."""
    network: Network | None = None
    """The network between the servers of a pool; a server by itself leaves this out."""
    gpus: Gpus | None = None
    """The server's GPUs; a server without GPUs leaves this out."""
    cpu_threads: int | None = Field(default=None, ge=1)
    """The number of threads that compute, best the number of physical cores. llama.cpp chooses it where this is left out."""
    numa_nodes: int = Field(default=1, ge=1, le=16)
    """The number of NUMA nodes (`lscpu` shows it). Each is a part of the RAM near one group of cores; most two-socket servers have two."""
    ram: Bytes
    """The size of the RAM with its unit, such as `480 GB`."""
    disk: Bytes
    """The size of the data disk, with its unit."""

    @model_validator(mode="after")
    def _is_a_pool_or_one_server(self) -> Self:
        if (self.hosts > 1) != (self.network is not None):
            raise ValueError("`hosts` and `network` belong together: a pool has both, and a server by itself neither")
        if len(self.cards) > MOST_CARDS:
            raise ValueError(f"the engine takes {MOST_CARDS} cards, and these are {len(self.cards)}")
        return self

    @property
    def cards(self) -> tuple[int, ...]:
        """The memory of each card in bytes, those that other servers of a pool lend first, as the engine has them.

        A server without GPUs lends its RAM, which the engine takes for a card.
        """
        own = (self.gpus.memory,) * self.gpus.count if self.gpus else ()
        return (own or (self.ram,)) * (self.hosts - 1) + own

    @property
    def lent(self) -> int:
        """The number of cards that other servers of a pool lend."""
        return (self.gpus.count if self.gpus else 1) * (self.hosts - 1)

    @property
    def vram(self) -> int:
        """The memory of all cards together, in bytes."""
        return sum(self.cards)

    @property
    def alone(self) -> Machine:
        """One server of a pool by itself."""
        return self.model_copy(update={"hosts": 1, "network": None})


class Floors(Keys):
    """The least that a server must have; a server with less is refused."""

    ram: Bytes
    """The least RAM, with its unit."""


class Serving(Keys):
    """How the model is served. The context is tokens per slot; the KV cache holds `context_per_slot` x `slots`."""

    quant: str
    """A quant of the catalogue, `best-on-gpus`, or the name of the profile's own `model`."""
    context_per_slot: Context | None = None
    """The number of tokens that each slot remembers. Without it these are 32,768, or as many as an exchange of the workload needs."""
    slots: Slots | None = None
    """The number of answers that the server computes at once, or a floor for it (`at least 8`). The plan chooses the rest."""
    first_token: Duration | None = None
    """A floor: every exchange of the workload has its first token after this time at most (`15s`), at the low speeds."""
    attention: Attention = "mla"
    """With `mla`, the server converts files with legacy attention to MLA form once. With `legacy`, it serves them as published."""
    kv_type_k: KvType = "f16"
    """The type of K in the cache. V is F16; in MLA form V is a part of K and has its type."""
    temperature: float = Field(default=0.6, ge=0, le=2)
    """The sampling temperature for a request that names none. DeepSeek recommends 0.6 for R1."""
    workload: NamedWorkload | None = None
    """`chat`, `documents`, `thinking`, `team`, or exchanges of your own. Default: `team` where all lies on the cards, or else `chat`."""
    micro_batch: int = Field(ge=32, le=4096)
    """The most prompt tokens that are computed at once. A higher number is faster and takes more memory of each card."""

    @property
    def fixed_slots(self) -> int | None:
        """The number of slots that the operator asks for; None where the plan chooses it."""
        return self.slots if isinstance(self.slots, int) else None

    @property
    def least_slots(self) -> int:
        """The fewest slots that the operator accepts."""
        return int(str(self.slots).rpartition(" ")[2]) if self.slots else 1


class Published(Keys):
    """A speed that others measured on such a machine and published."""

    what: OneLine
    """The hardware, the engine and its settings."""
    decode_tokens_per_second: float
    """The measured speed, in decoded tokens per second."""


class Question(Keys):
    """The question of the smoke benchmark, and a regular expression that a right answer matches."""

    ask: str = "What is the capital of France? Answer in one sentence."
    """The text of the question."""
    expect: str = "Paris"
    """The regular expression that a right answer matches."""
    max_tokens: int = Field(default=2048, ge=8)
    """The length of the longest answer, in tokens, thinking included."""


class Profile(Keys):
    """A kind of server, and how it serves unless the site says otherwise."""

    description: OneLine
    """The line that `r1prov profiles` shows."""
    machine: Machine
    floors: Floors
    serving: Serving
    model: Quant | None = None
    """The files of a model that is not in the catalogue; `serving.quant` is then its name."""
    question: Question = Question()
    published: tuple[Published, ...] = ()


def names() -> list[str]:
    """The profiles that come with r1prov."""
    return sorted(path.stem for path in _folder().glob("*.yml"))


def load_profile(name_or_path: str) -> Profile:
    """A profile by name, or the operator's own from a YAML file.

    Raises:
        SiteError: The name is unknown (the remedy shows similar names), the file is unreadable, or its content is wrong.
            The error names all problems at once.
    """
    is_own = name_or_path not in names() and documents.names_file(name_or_path)
    path = Path(name_or_path) if is_own else _folder() / f"{name_or_path}.yml"
    if not is_own and not path.is_file():
        near = difflib.get_close_matches(name_or_path, names(), n=3, cutoff=0.4)
        hint = f"did you mean {' or '.join(near)}?" if near else f"there are: {', '.join(names())}."
        raise SiteError(
            Problem("profile", f"there is no profile `{name_or_path}`", f"{hint} Or name a YAML file of your own.")
        )
    profile = documents.load(path, Profile)
    if profile.serving.quant == BEST_ON_GPUS and not profile.machine.gpus:
        raise SiteError(Problem(str(path), f"`{BEST_ON_GPUS}` on a machine without GPUs", "name a quant"))
    return profile


def source(name: str) -> str:
    """The text of a profile that comes with r1prov, from which an operator can start a profile of their own."""
    return (_folder() / f"{name}.yml").read_text()


def as_yaml(profile: Profile) -> str:
    """The profile as YAML; each size has the form `N B`."""
    return yaml.safe_dump(profile.model_dump(mode="json", exclude_none=True), sort_keys=False)


def _folder() -> Path:
    return paths.collection() / "inventory" / "profiles"
