"""The keys of `r1prov.yml`: what the operator wants."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from r1prov.common.documents import Keys
from r1prov.machines.profile import Context, KvType, Profile
from r1prov.models.latent import Attention
from r1prov.site.sources import Sources

TESTED_LLAMA_CPP = {"pypi": "0.3.36", "git": "0c1e57098bba43ac29e6e3b677cdceebdd22334f"}
"""The pinned llama.cpp (b11312), as llama-cpp-python and as a commit."""

TESTED_OLLAMA = "0.12.11"
OLDEST_OLLAMA = "0.5.5"
"""The first that knows DeepSeek-V3 and with it R1, as Ollama's library says of deepseek-v3."""
TESTED_OPEN_WEBUI = "0.12.4"

Engine = Literal["llama-server", "ollama"]

Check = Literal[
    "os", "arch", "init", "sudo", "clock", "cpu", "ram", "floor", "driver",
    "gpu_count", "gpu_memory", "gpu_compute", "gpu_busy", "gpu_devices", "disk", "ports", "sources", "fit",
]  # fmt: skip
"""The checks of a host (plugins/module_utils/host_judge.py)."""

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


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(map(int, version.split(".")))


class Versions(Keys):
    """What is installed. `llama_cpp`: for `pypi` the version of llama-cpp-python, for `git` a tag or commit, for `archive` a label."""

    llama_cpp: str = Field(default="", pattern=r"^[\w.-]*$")
    """Empty: the version that r1prov is tested with."""
    ollama: str = Field(default=TESTED_OLLAMA, pattern=r"^\d+\.\d+\.\d+$")
    """Of Ollama."""
    open_webui: str = Field(default=TESTED_OPEN_WEBUI, pattern=r"^\d+\.\d+\.\d+$")
    """Of the chat page."""


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


class Certificate(Keys):
    """The operator's own certificate: files on the controller, relative to the site file."""

    type: Literal["certificate"]
    chain: str
    """PEM, the server's certificate first, then those that issued it."""
    key: str
    """PEM, its private key, without a passphrase."""


class LocalAuthority(Keys):
    """An authority of the site's own, made once; people tell their machines to trust its `authority.crt`, which `r1prov open` names."""

    type: Literal["local-authority"]


class Acme(Keys):
    """An ACME server such as Let's Encrypt, which must reach port 80 of the server under `server_name`. Renewal needs nobody."""

    type: Literal["acme"]
    email: str = Field(pattern=r"^[^@\s]+@[^@\s]+$")
    """Whom the ACME server writes to; naming it agrees to its terms."""
    directory: str = Field(default="https://acme-v02.api.letsencrypt.org/directory", pattern=r"^https://")
    """The URL of the server's directory."""


class Gateway(Keys):
    """The only listener that others can reach: page and API over TLS. Without this key there is none."""

    server_name: str = Field(pattern=r"^[A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?$|^[0-9A-Fa-f:]+$")
    """The name or address that people open."""
    address: str = "0.0.0.0"  # noqa: S104 - to be reached is what it is for
    """The address to listen on; `::` takes IPv4 too."""
    port: int = Field(default=443, ge=1, le=65535)
    """The port."""
    tls: Annotated[Certificate | LocalAuthority | Acme, Field(discriminator="type")]
    """Where its certificate comes from."""

    @property
    def ports(self) -> tuple[int, ...]:
        """Where it listens."""
        return (self.port, 80) if self.tls.type == "acme" else (self.port,)

    @property
    def url(self) -> str:
        """What people open."""
        name = f"[{self.server_name}]" if ":" in self.server_name else self.server_name
        return f"https://{name}" if self.port == 443 else f"https://{name}:{self.port}"


class SiteFile(Keys):
    """The keys of `r1prov.yml`. What is not said comes from the profile."""

    profile: str
    """A profile that comes with r1prov, or a .yml file of your own, relative to this file."""
    hosts: tuple[HostEntry, ...] = Field(min_length=1)
    """The servers: `[user@]address[:port]` each, or a mapping of name, address, user, port."""
    quant: str | None = None
    """One of the catalogue, or `best-on-gpus`. Default: the profile's."""
    context_per_slot: Context | None = None
    """Tokens per slot. Default: the profile's."""
    slots: int | None = Field(default=None, ge=1, le=64)
    """How many answers at once. Default: the profile's."""
    attention: Attention | None = None
    """`mla` or `legacy`: whether files with legacy attention are brought into MLA form, or served as published. Default: the profile's."""
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
    gateway: Gateway | None = None
    """Page and API for others, over TLS. Off unless it is here."""

    @property
    def api(self) -> tuple[str, int]:
        """Where the engine that holds the model listens: address and port."""
        if self.engine == "ollama":
            return "127.0.0.1", self.ollama.port
        return self.service.address, self.service.port

    @property
    def ollama_archive(self) -> str:
        """Where Ollama's archive lies, by the operator's word or by the project's own naming."""
        source, version = self.sources.ollama, self.versions.ollama
        packing = "tar.zst" if _numbers(version) >= (0, 14) else "tgz"
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
        return self

    @model_validator(mode="after")
    def _the_engine_is_there(self) -> Self:
        if self.engine == "ollama" and not self.ollama.enabled:
            raise ValueError("engine is ollama, but ollama.enabled is false")
        return self

    @model_validator(mode="after")
    def _ollama_knows_the_model(self) -> Self:
        if self.ollama.enabled and _numbers(self.versions.ollama) < _numbers(OLDEST_OLLAMA):
            raise ValueError(
                f"Ollama {self.versions.ollama} does not know DeepSeek-R1: take {OLDEST_OLLAMA} or newer, or `ollama: {{enabled: false}}`"
            )
        return self

    @model_validator(mode="after")
    def _ports_are_distinct(self) -> Self:
        page, api = self.open_webui, self.service
        ports = [api.port, *([self.ollama.port] if self.ollama.enabled else [])]
        ports += [page.port, page.embeddings_port] if page.enabled else []
        ports += self.gateway.ports if self.gateway else ()
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
