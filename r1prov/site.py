"""What the operator wants: hosts, profile, quant, context, sources. From `r1prov.yml` and flags."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from r1prov import documents
from r1prov.errors import Problem, SiteError
from r1prov.machine import KvType, Profile, load_profile

SITE_FILE = "r1prov.yml"

TESTED_LLAMA_CPP = {"pypi": "0.3.36", "git": "0c1e57098bba43ac29e6e3b677cdceebdd22334f"}
"""The pinned llama.cpp (b11312), as llama-cpp-python and as a commit."""

Check = Literal[
    "os", "arch", "init", "sudo", "clock", "cpu", "ram", "floor", "driver",
    "gpu_count", "gpu_memory", "gpu_compute", "gpu_busy", "gpu_devices", "disk", "ports", "sources",
]  # fmt: skip
"""The checks of preflight (plugins/module_utils/host_judge.py)."""

_ADDRESS = re.compile(
    r"(?:(?P<user>[^@\s]+)@)?(?:\[(?P<v6>[0-9a-fA-F:.%]+)\]|(?P<name>[^@:\s\[\]]+))(?::(?P<port>\d{1,5}))?"
)


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class Host(_Strict):
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


class Hub(_Strict):
    """The Hugging Face hub or a mirror of it (HF_ENDPOINT). `token_file`: a file on the controller, 0600."""

    type: Literal["hub"]
    endpoint: str = "https://huggingface.co"
    """The hub, or a mirror of it (what HF_ENDPOINT names)."""
    token_file: str | None = None
    """A file on the controller, 0600, for repositories that want a login. Sent to this endpoint only."""


class ModelScope(_Strict):
    """ModelScope, which carries the same repository under the same name."""

    type: Literal["modelscope"]
    endpoint: str = "https://modelscope.cn"
    """The address of ModelScope."""


class Mirror(_Strict):
    """A web server, or a folder of the host as `file://`."""

    type: Literal["http"]
    url: str
    """What holds the files, or the quant's folder."""


class Folder(_Strict):
    """A folder on the host, or a disk mounted there, that already holds the files."""

    type: Literal["folder"]
    path: str = Field(pattern=r"^/")
    """The folder that holds the files, or the one above the quant's folder."""


WeightSource = Annotated[Hub | ModelScope | Mirror | Folder, Field(discriminator="type")]


class Proxy(_Strict):
    """Proxies for everything the hosts fetch."""

    http: str = ""
    """For http addresses."""
    https: str = ""
    """For https addresses."""
    none_for: str = ""
    """Names and addresses to reach without a proxy, separated by commas."""


class AptSource(_Strict):
    """`mirror` empty: the host's own apt configuration. Else only the mirror is used, and /etc/apt stays as it is."""

    mirror: str = ""
    """A base URL as `http://mirror.example.com/debian`, or a whole `deb` line."""


class PypiSource(_Strict):
    """The package index that pip uses on the hosts."""

    index: str = "https://pypi.org/simple"
    """The index or a mirror of it."""


class LlamaCppSource(_Strict):
    """Where llama.cpp's source comes from: `pypi` (the llama-cpp-python sdist), `git`, or `archive` (URL or file)."""

    type: Literal["pypi", "git", "archive"] = "pypi"
    """Which of the three."""
    git_url: str = "https://github.com/ggml-org/llama.cpp"
    """For `git`."""
    archive: str = ""
    """For `archive`: a URL, a file on the controller, or a file on the host."""
    sha256: str = Field(default="", pattern=r"^([0-9a-f]{64})?$")
    """Of the sdist or the archive. Known for the pinned version only."""


class CudaSource(_Strict):
    """Where nvcc comes from when the host has none; `auto` takes what the driver allows."""

    type: Literal["auto", "system", "distribution", "nvidia", "pypi"] = "auto"
    """Which of them."""
    nvidia_repository: str = ""
    """For `nvidia`: the base URL of NVIDIA's apt repository or a mirror of it."""


class Sources(_Strict):
    """Every address that a host may reach for. Nothing reaches for an address that is not here."""

    proxy: Proxy = Proxy()
    """For everything the hosts fetch."""
    environment_file: str = ""
    """A shell script on the host to source before the weights are fetched, as rented machines have."""
    ca_certificates: tuple[str, ...] = ()
    """Files on the controller: certificate authorities of a TLS-inspecting proxy or an internal mirror."""
    apt: AptSource = AptSource()
    """The distribution's packages."""
    pypi: PypiSource = PypiSource()
    """Python packages."""
    llama_cpp: LlamaCppSource = LlamaCppSource()
    """The engine."""
    cuda: CudaSource = CudaSource()
    """The compiler for the GPUs."""
    weights: tuple[WeightSource, ...] = Field(default=(Hub(type="hub"), ModelScope(type="modelscope")), min_length=1)
    """Where the weights come from, in this order: the next one when one refuses."""


class Versions(_Strict):
    """What is installed. `llama_cpp`: for `pypi` the version of llama-cpp-python, for `git` a tag or commit, for `archive` a label."""

    llama_cpp: str = Field(default="", pattern=r"^[\w.-]*$")
    """Empty: the version that r1prov is tested with."""


class Service(_Strict):
    """Where the API listens, and the name under which it offers the model."""

    address: str = "127.0.0.1"
    """The address to listen on. Anything but loopback offers the API to the network."""
    port: int = Field(default=8000, ge=1, le=65535)
    """The port."""
    alias: str = ""
    """The model's name in the API; empty: the quant's folder."""


class SiteFile(_Strict):
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


class Site(_Strict):
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


def load(path: Path | None = None, **flags: Any) -> Site:
    """The site from a file (`path`, or `r1prov.yml` in this folder when no host is named) and flags, which win.

    Args:
        path: the site file.
        flags: keys of `SiteFile`; None or empty means: not given. `hosts` are strings.

    Raises:
        SiteError: everything that is wrong, at once.
    """
    given = {key: value for key, value in flags.items() if value not in (None, (), [])}
    if path is None and not given.get("hosts") and Path(SITE_FILE).is_file():
        path = Path(SITE_FILE)
    if path is not None:
        base = _read(path).model_dump()
        path = path.resolve()
    else:
        base = {}
        _require_flags(given)
    try:
        file = SiteFile.model_validate(base | given)
    except ValidationError as error:
        raise SiteError(
            *(
                Problem(
                    "--" + str(detail["loc"][0] if detail["loc"] else "hosts"),
                    documents.words(detail),
                    "see `r1prov up --help`",
                )
                for detail in error.errors()
            )
        ) from None
    file = _files_beside(path, file)
    return Site(path=path, file=file, profile=_with_wishes(load_profile(file.profile), file))


def _read(path: Path) -> SiteFile:
    """The site file; where it is wrong, what is wrong with its profile is said too.

    Raises:
        SiteError: everything that is wrong.
    """
    try:
        return documents.load(path, SiteFile)
    except SiteError as error:
        profile = documents.glance(path, "profile")
        try:
            if isinstance(profile, str):
                load_profile(_beside(path.parent, profile))
        except SiteError as also:
            raise SiteError(*error.problems, *also.problems) from None
        raise


def _beside(folder: Path, profile: str) -> str:
    """A profile's name, or the path of an own one, relative to the site file."""
    return str(folder / profile) if profile.endswith((".yml", ".yaml")) else profile


def _require_flags(given: dict[str, Any]) -> None:
    missing = [
        Problem("command line", what, remedy)
        for key, what, remedy in (
            ("hosts", "no host is named", f"name hosts, or write a {SITE_FILE} (docs/site.md)"),
            ("profile", "no profile is named", "add --profile; `r1prov profiles` lists them"),
        )
        if key not in given
    ]
    if missing:
        raise SiteError(*missing)


def _files_beside(path: Path | None, file: SiteFile) -> SiteFile:
    """Files of the controller are named relative to the site file; they must be there before anything starts.

    Raises:
        SiteError: those that are missing or, for an archive, corrupt.
    """
    folder = path.parent if path else Path.cwd()
    sources = file.sources
    profile = _beside(folder, file.profile)
    certificates = tuple(str(folder / name) for name in sources.ca_certificates)
    weights = tuple(
        source.model_copy(update={"token_file": str(folder / source.token_file)})
        if source.type == "hub" and source.token_file
        else source
        for source in sources.weights
    )
    hosts = tuple(
        host.model_copy(update={"identity_file": str(folder / Path(host.identity_file).expanduser())})
        if host.identity_file
        else host
        for host in file.hosts
    )
    wanted = [
        *certificates,
        *(s.token_file for s in weights if s.type == "hub" and s.token_file),
        *(h.identity_file for h in hosts if h.identity_file),
    ]
    problems = [
        Problem(
            name, "this file does not exist", "the site file or a flag names it; paths are relative to the site file"
        )
        for name in wanted
        if not Path(name).is_file()
    ]
    archive = folder / sources.llama_cpp.archive
    if sources.llama_cpp.archive and archive.is_file():
        sources = sources.model_copy(
            update={"llama_cpp": sources.llama_cpp.model_copy(update={"archive": str(archive)})}
        )
        with archive.open("rb") as content:
            digest = hashlib.file_digest(content, "sha256").hexdigest()
        if digest != sources.llama_cpp.sha256:
            problems.append(
                Problem(
                    str(archive),
                    f"its sha256 is {digest}, not what sources.llama_cpp.sha256 says",
                    "get the archive again, or correct the digest",
                )
            )
    elif sources.llama_cpp.archive and not re.match(r"https?://|/", sources.llama_cpp.archive):
        problems.append(
            Problem(
                str(archive), "this archive does not exist", "name a URL, a file here, or an absolute path on the hosts"
            )
        )
    if problems:
        raise SiteError(*problems)
    return file.model_copy(
        update={
            "profile": profile,
            "hosts": hosts,
            "sources": sources.model_copy(update={"ca_certificates": certificates, "weights": weights}),
        }
    )


def _with_wishes(profile: Profile, file: SiteFile) -> Profile:
    wishes = {
        key: value
        for key, value in (
            ("quant", file.quant),
            ("context_per_slot", file.context_per_slot),
            ("slots", file.slots),
            ("kv_type_k", file.kv_type_k),
        )
        if value is not None
    }
    return profile.model_copy(update={"serving": profile.serving.model_copy(update=wishes)})
