"""Profiles: the hardware of one kind of server (GPUs, RAM, CPU, disk), and how it serves a model."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Annotated, Literal

import yaml
from pydantic import BeforeValidator, Field, PlainSerializer

from r1prov.common import documents, paths
from r1prov.common.documents import Keys
from r1prov.common.errors import Problem, SiteError
from r1prov.common.units import parse_size
from r1prov.models.catalogue import Quant
from r1prov.models.latent import Attention

Bytes = Annotated[
    int,
    BeforeValidator(lambda value: parse_size(str(value))),
    PlainSerializer(lambda n_bytes: f"{n_bytes} B", when_used="json"),
]
"""A number of bytes. YAML and JSON write it with a unit, as `480 GB`."""

BEST_ON_GPUS = "best-on-gpus"
"""The value of `quant` that stands for the best dynamic quant whose layers all fit on the cards."""

Context = Annotated[int, Field(ge=256)]
"""Tokens that a slot remembers; the plan compares them with what the model was trained for."""

KvType = Literal["f32", "f16", "bf16", "q8_0", "q4_0", "q4_1", "q5_0", "q5_1"]


class Gpus(Keys):
    """Equal cards."""

    count: int = Field(ge=1, le=16)
    """How many."""
    name: str
    """For messages."""
    memory: Bytes
    """Of one card, as nvidia-smi counts it, with its unit."""
    compute_capability: str = Field(pattern=r"^\d+\.\d$")
    """Like `8.9`."""

    @property
    def architecture(self) -> str:
        """The name CMAKE_CUDA_ARCHITECTURES takes, e.g. `89`."""
        return self.compute_capability.replace(".", "")


class Machine(Keys):
    """One server. Inside, sizes are bytes."""

    gpus: Gpus | None = None
    """The cards; none for a server without."""
    cpu_threads: int | None = Field(default=None, ge=1)
    """Threads that compute, best as many as physical cores; without: as many as llama.cpp finds."""
    numa_nodes: int = Field(default=1, ge=1, le=16)
    """Parts of the RAM, each near one group of cores: two on most two-socket servers. `lscpu` tells."""
    ram: Bytes
    """With its unit, as `480 GB`."""
    disk: Bytes
    """The data disk, with its unit."""

    @property
    def cards(self) -> tuple[int, ...]:
        """Bytes of each card."""
        return (self.gpus.memory,) * self.gpus.count if self.gpus else ()

    @property
    def vram(self) -> int:
        """Bytes of all cards together."""
        return self.gpus.count * self.gpus.memory if self.gpus else 0


class Floors(Keys):
    """Below these a server is refused."""

    ram: Bytes
    """With its unit."""


class Serving(Keys):
    """How the model is served. The context is tokens per slot; the KV cache holds `context_per_slot` x `slots`."""

    quant: str
    """One of the catalogue, `best-on-gpus`, or the name of the profile's own `model`."""
    context_per_slot: Context
    """Tokens per slot."""
    slots: int = Field(ge=1, le=64)
    """How many answers at once."""
    attention: Attention = "mla"
    """`mla`: files with legacy attention are brought into MLA form on the server, once; `legacy`: they are served as published."""
    kv_type_k: KvType = "f16"
    """The type of K in the cache; V is F16, but in MLA form, where it is a part of K."""
    temperature: float = Field(default=0.6, ge=0, le=2)
    """Of the sampling, where a client names none; 0.6 is what DeepSeek recommends for R1."""
    micro_batch: int = Field(ge=32, le=4096)
    """Tokens of a prompt computed at once; more is faster and takes more of each card."""


class Published(Keys):
    """A figure that others measured on such a machine."""

    what: str
    """Hardware, engine, setting."""
    decode_tokens_per_second: float
    """The figure."""


class Question(Keys):
    """What the smoke benchmark asks, and a regular expression that a right answer matches."""

    ask: str = "What is the capital of France? Answer in one sentence."
    """The question."""
    expect: str = "Paris"
    """The regular expression."""
    max_tokens: int = Field(default=2048, ge=8)
    """The longest answer, thinking included."""


class Profile(Keys):
    """A kind of server, and how it serves unless the site says otherwise."""

    description: str
    """One line for `r1prov profiles`."""
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
    """A profile by name, or the operator's own from a `.yml` file.

    Raises:
        SiteError: unknown name (with near ones), unreadable file, or wrong content; all problems at once.
    """
    path = Path(name_or_path) if name_or_path.endswith((".yml", ".yaml")) else _folder() / f"{name_or_path}.yml"
    if not path.is_file():
        near = difflib.get_close_matches(name_or_path, names(), n=3, cutoff=0.4)
        hint = f"did you mean {' or '.join(near)}?" if near else f"there are: {', '.join(names())}."
        raise SiteError(
            Problem("profile", f"there is no profile `{name_or_path}`", f"{hint} Or name a .yml file of your own.")
        )
    profile = documents.load(path, Profile)
    if profile.serving.quant == BEST_ON_GPUS and not profile.machine.gpus:
        raise SiteError(Problem(str(path), f"`{BEST_ON_GPUS}` on a machine without GPUs", "name a quant"))
    return profile


def source(name: str) -> str:
    """The text of a profile that comes with r1prov, to start an own one from."""
    return (_folder() / f"{name}.yml").read_text()


def as_yaml(profile: Profile) -> str:
    """A profile as YAML, sizes as `N B`."""
    return yaml.safe_dump(profile.model_dump(mode="json", exclude_none=True), sort_keys=False)


def _folder() -> Path:
    return paths.collection() / "inventory" / "profiles"
