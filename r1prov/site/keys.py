"""The keys of `r1prov.yml`: what the operator wants."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from r1prov.documents import Keys
from r1prov.machine import KvType, Profile
from r1prov.site.sources import Sources

TESTED_LLAMA_CPP = {"pypi": "0.3.36", "git": "0c1e57098bba43ac29e6e3b677cdceebdd22334f"}
"""The pinned llama.cpp (b11312), as llama-cpp-python and as a commit."""

TESTED_OLLAMA = "0.12.11"

Engine = Literal["llama-server", "ollama"]

Check = Literal[
    "os", "arch", "init", "sudo", "clock", "cpu", "ram", "floor", "driver",
    "gpu_count", "gpu_memory", "gpu_compute", "gpu_busy", "gpu_devices", "disk", "ports", "sources",
]  # fmt: skip
"""The checks of preflight (plugins/module_utils/host_judge.py)."""

_ADDRESS = re.compile(
    r"(?:(?P<user>[^@\s]+)@)?(?:\[(?P<v6>[0-9a-fA-F:.%]+)\]|(?P<name>[^@:\s\[\]]+))(?::(?P<port>\d{1,5}))?"
)


class Host(Keys):
    """One server."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")
    """What every output calls it."""
    address: str
    """A name, an address, or a `Host` of ~/.ssh/config."""
    user: str | None = None
    """Who logs in; without: as ssh's configuration says."""
    port: int | None = Field(default=None, ge=1, le=65535)
    """Of sshd; without: as ssh's configuration says."""
    identity_file: str | None = None
    """A private key for this host; else ssh's own configuration, agent and default keys are used."""

    @property
    def local(self) -> bool:
        """Whether this is the controller itself: no ssh then."""
        return self.address in {"localhost", "127.0.0.1", "::1"} and self.port is None

    @classmethod
    def parse(cls, text: str) -> Host:
        """A host from `[user@]address[:port]`, an IPv6 address in brackets.

        Raises:
            ValueError: not of that form.
        """
        match = _ADDRESS.fullmatch(text)
        if not match:
            raise ValueError(f"`{text}` is no host: write [user@]address[:port]")
        address = match["v6"] or match["name"]
        # Ansible would read a colon in a host's name as the start of a port.
        name = "-".join(filter(None, (address.strip(":").replace(":", "-"), match["port"])))
        return cls(name=name, address=address, user=match["user"], port=int(match["port"]) if match["port"] else None)


HostEntry = Annotated[Host, BeforeValidator(lambda value: Host.parse(value) if isinstance(value, str) else value)]


class Versions(Keys):
    """What is installed. `llama_cpp`: for `pypi` the version of llama-cpp-python, for `git` a tag or commit, for `archive` a label."""

    llama_cpp: str = Field(default="", pattern=r"^[\w.-]*$")
    """Empty: the version that r1prov is tested with."""
    ollama: str = Field(default=TESTED_OLLAMA, pattern=r"^\d+\.\d+\.\d+$")
    """Of Ollama."""


class Service(Keys):
    """Where the API listens, and the name under which it offers the model."""

    address: str = "127.0.0.1"
    """The address to listen on. Anything but loopback offers the API to the network."""
    port: int = Field(default=8000, ge=1, le=65535)
    """The port."""
    alias: str = ""
    """The model's name in the API; empty: the quant's folder."""


class Ollama(Keys):
    """Ollama, on loopback only: it has no login."""

    enabled: bool = True
    """Whether it is installed. Then the shards of the model are merged into the one file that it wants."""
    port: int = Field(default=11434, ge=1, le=65535)
    """The port."""


class OpenWebui(Keys):
    """The chat page, on loopback only."""

    enabled: bool = True
    """Whether it is installed."""
    port: int = Field(default=8080, ge=1, le=65535)
    """The port."""
    embeddings_port: int = Field(default=8001, ge=1, le=65535)
    """Of the small model that finds passages in documents."""
    admin_email: str = Field(default="admin@example.com", pattern=r"^[^@\s]+@[^@\s]+$")
    """Who administers the page; r1prov makes the account and its password."""


class SiteFile(Keys):
    """The keys of `r1prov.yml`. What is not said comes from the profile."""

    profile: str
    """A profile that comes with r1prov, or a .yml file of your own, relative to this file."""
    hosts: tuple[HostEntry, ...] = Field(min_length=1)
    """The servers: `[user@]address[:port]` each, or a mapping of name, address, user, port."""
    quant: str | None = None
    """One of the catalogue, or `best-on-gpus`. Default: the profile's."""
    context_per_slot: int | None = Field(default=None, ge=256, le=163840)
    """Tokens per slot. Default: the profile's."""
    slots: int | None = Field(default=None, ge=1, le=64)
    """How many answers at once. Default: the profile's."""
    kv_type_k: KvType | None = None
    """The type of K in the cache. Default: the profile's."""
    data_dir: str = Field(default="/srv/r1prov", pattern=r"^/.")
    """The folder for the weights on the host; name the data disk where there is one."""
    rpc: bool = False
    """Whether llama.cpp's RPC server is built too."""
    override: tuple[Check, ...] = ()
    """Preflight checks, by name, whose refusal the operator accepts."""
    sources: Sources = Sources()
    """Every address that a host may reach for."""
    versions: Versions = Versions()
    """What is installed."""
    service: Service = Service()
    """Where the API listens."""
    engine: Engine = "llama-server"
    """Which engine holds the model; `r1prov engine` switches where the file does not say it."""
    ollama: Ollama = Ollama()
    """The other engine."""
    open_webui: OpenWebui = OpenWebui()
    """The chat page."""

    @property
    def ollama_archive(self) -> str:
        """Where Ollama's archive lies, by the operator's word or by the project's own naming."""
        source, version = self.sources.ollama, self.versions.ollama
        packing = "tar.zst" if tuple(map(int, version.split("."))) >= (0, 14) else "tgz"
        return source.archive or f"{source.releases.rstrip('/')}/v{version}/ollama-linux-amd64.{packing}"

    @property
    def llama_cpp_version(self) -> str:
        """The version to install, the tested one unless the operator names another."""
        return self.versions.llama_cpp or TESTED_LLAMA_CPP.get(self.sources.llama_cpp.type, "")

    @model_validator(mode="after")
    def _llama_cpp_is_checked(self) -> Self:
        source = self.sources.llama_cpp
        if source.type == "archive" and not (source.archive and source.sha256 and self.versions.llama_cpp):
            raise ValueError(
                "sources.llama_cpp of type archive needs `archive` (URL or file), `sha256`, and a label in versions.llama_cpp"
            )
        if source.type == "pypi" and self.llama_cpp_version != TESTED_LLAMA_CPP["pypi"] and not source.sha256:
            raise ValueError(
                "another versions.llama_cpp than the tested one needs sources.llama_cpp.sha256, the digest of its sdist"
            )
        return self

    @model_validator(mode="after")
    def _the_engine_is_there(self) -> Self:
        if self.engine == "ollama" and not self.ollama.enabled:
            raise ValueError("engine is ollama, but ollama.enabled is false")
        return self

    @model_validator(mode="after")
    def _ports_are_distinct(self) -> Self:
        page, api = self.open_webui, self.service
        ports = [api.port, *([self.ollama.port] if self.ollama.enabled else [])]
        ports += [page.port, page.embeddings_port] if page.enabled else []
        twice = sorted({port for port in ports if ports.count(port) > 1})
        if twice:
            raise ValueError(f"port {twice[0]} is given to two services")
        return self

    @model_validator(mode="after")
    def _one_token(self) -> Self:
        if sum(source.type == "hub" and bool(source.token_file) for source in self.sources.weights) > 1:
            raise ValueError("sources.weights: only one hub can have a token_file")
        return self

    @model_validator(mode="after")
    def _hosts_are_distinct(self) -> Self:
        names = [host.name for host in self.hosts]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"host {', '.join(twice)} is named twice")
        return self


class Site(Keys):
    """The whole intent: the site file with flags applied, and its profile with the site's wishes applied."""

    path: Path | None
    """The site file, if there is one: its folder holds the state."""
    file: SiteFile
    profile: Profile

    @property
    def hosts(self) -> tuple[Host, ...]:
        """The servers."""
        return self.file.hosts

    @property
    def name(self) -> str:
        """What outputs call this site."""
        return self.path.parent.name if self.path else "default"
