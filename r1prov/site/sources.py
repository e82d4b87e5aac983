"""The `sources` of `r1prov.yml`: every address from which a host may fetch something."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BeforeValidator, Field, PlainSerializer, model_validator

from r1prov.common.documents import Keys
from r1prov.common.network import Network, without_login
from r1prov.common.units import parse_hours, parse_rate
from r1prov.models.sources import PUBLIC, Folder, Mirror, WeightSource

if TYPE_CHECKING:
    from collections.abc import Iterator


WHOLE_DAY = "00:00-24:00"

Hours = Annotated[str, BeforeValidator(lambda value: parse_hours(str(value)))]
"""A part of each day, as `08:00-18:00`."""

Rate = Annotated[
    int,
    BeforeValidator(lambda value: parse_rate(str(value))),
    PlainSerializer(lambda rate: f"{rate} B/s", when_used="json"),
]
"""A number of bytes per second. YAML and JSON write it with a unit, such as `20 MB/s`."""

RateByHour = Annotated[
    dict[Hours, Rate], BeforeValidator(lambda value: value if isinstance(value, dict) else {WHOLE_DAY: value})
]
"""Rates by the hours in which they hold. People may write one rate, which holds at any time."""


class Proxy(Keys):
    """The proxies for everything that hosts fetch. The controller uses them too, when it reads headers and asks the package index."""

    http: str = ""
    """The proxy for http addresses."""
    https: str = ""
    """The proxy for https addresses."""
    none_for: str = ""
    """Names and addresses to reach without a proxy, separated by commas."""


class AptSource(Keys):
    """Where packages of the distribution come from: a mirror, or else the host's own apt sources. /etc/apt is never changed."""

    mirror: str = ""
    """The only place that packages come from: a base URL such as `http://mirror.example.com/debian`, or a whole `deb` line."""


class PypiSource(Keys):
    """The package index that pip uses on the hosts."""

    index: str = Field(default="https://pypi.org/simple", pattern=r"^https?://")
    """The index or a mirror of it."""


class LlamaCppSource(Keys):
    """Where the source of llama.cpp comes from."""

    type: Literal["pypi", "git", "archive"] = "pypi"
    """`pypi` takes the sdist of llama-cpp-python, `git` a commit or a tag of a repository, `archive` a URL or a file."""
    git_url: str = "https://github.com/ggml-org/llama.cpp"
    """The repository, for `git`."""
    archive: str = ""
    """The archive, for `archive`: a URL, a file on the controller, or a file on the host."""
    sha256: str = Field(default="", pattern=r"^([0-9a-f]{64})?$")
    """The digest of the sdist or the archive. An sdist needs none: its digest is known, or the package index is asked for it once."""


class OllamaSource(Keys):
    """Where Ollama's release archive comes from: from the releases of the project or a mirror of them, or from one archive."""

    releases: str = "https://github.com/ollama/ollama/releases/download"
    """The address that holds `vVERSION/ollama-linux-amd64.tgz` (`.tar.zst` from 0.14 on). `sha256sum.txt` beside it is believed once."""
    archive: str = ""
    """One archive, which is used instead of the releases: a URL, a file on the controller, or a file on the host."""
    sha256: str = Field(default="", pattern=r"^([0-9a-f]{64})?$")
    """The digest of the archive. It is required for `archive`, unless that is a file on the controller."""


class PythonSource(Keys):
    """Where the chat page's Python (3.11 or 3.12) comes from on a host whose distribution has none."""

    archive: str = ""
    """A relocatable build (python-build-standalone): a URL, a file on the controller, or a file on the host."""
    sha256: str = Field(default="", pattern=r"^([0-9a-f]{64})?$")
    """The digest of the archive. It is required, unless that is a file on the controller."""


class CudaSource(Keys):
    """Where nvcc comes from, on a host that has none."""

    type: Literal["auto", "system", "distribution", "nvidia", "pypi"] = "auto"
    """`system`, `distribution`, `nvidia` or `pypi`; `auto` takes the first of them that fits the driver."""
    nvidia_repository: str = ""
    """The base URL of NVIDIA's apt repository or of a mirror of it, for `nvidia`."""


PRESETS: dict[str, dict[str, Any]] = {
    "cn": {
        "pypi": {"index": "https://pypi.tuna.tsinghua.edu.cn/simple"},
        "weights": [{"type": "modelscope"}, {"type": "hub", "endpoint": "https://hf-mirror.com"}, {"type": "hub"}],
    }
}
"""For each preset the keys of `Sources` that it stands for. Nobody is trusted for being in it: what is fetched has a known digest."""


class Sources(Keys):
    """Every address from which a host may fetch something. Nothing is fetched from an address that is not here."""

    preset: Literal["cn"] | None = None
    """A name for several of these keys: `cn` is for mirrors in China; `r1prov sources` prints them. Keys of the file outrank it."""
    proxy: Proxy = Proxy()
    """The proxies for everything that hosts fetch."""
    environment_file: str = Field(default="", pattern=r"^(/.+)?$")
    """A shell script on the host that is sourced before the weights are fetched, and before git fetches llama.cpp. Rented machines have
    such scripts. It counts for nothing else, because the proxies that they set slow package indexes down."""
    ca_certificates: tuple[str, ...] = ()
    """Files on the controller with the certificates of authorities, as of a TLS-inspecting proxy or an internal mirror."""
    apt: AptSource = AptSource()
    """Where packages of the distribution come from."""
    pypi: PypiSource = PypiSource()
    """Where Python packages come from."""
    llama_cpp: LlamaCppSource = LlamaCppSource()
    """Where the source of llama.cpp comes from."""
    ollama: OllamaSource = OllamaSource()
    """Where Ollama comes from."""
    python: PythonSource = PythonSource()
    """Where the chat page's Python comes from, on a host that has none."""
    cuda: CudaSource = CudaSource()
    """Where nvcc comes from, on a host that has none."""
    rate_limit: RateByHour = Field(default={})
    """How fast each host may fetch the weights from web servers: `20 MB/s`, or by hours of its clock, `{"08:00-18:00": 20 MB/s}`."""
    weights: tuple[WeightSource, ...] = Field(default=PUBLIC, min_length=1)
    """Where the weights come from. They are tried in this order."""

    @model_validator(mode="before")
    @classmethod
    def _with_preset(cls, given: Any) -> Any:
        name = given.get("preset") if isinstance(given, dict) else None
        return {**PRESETS[name], **given} if isinstance(name, str) and name in PRESETS else given

    def said_by(self, key: str) -> str:
        """Who says the value of a key: the site file, a preset or nobody, where it is the default."""
        value = getattr(self, key)
        if self.preset and key in PRESETS[self.preset] and value == getattr(Sources(preset=self.preset), key):
            return f"preset {self.preset}"
        return "default" if value == getattr(Sources(), key) else "site file"

    def addresses(self) -> Iterator[tuple[str, str]]:
        """Each key with the addresses that it stands for, in words for people. Logins in addresses are left out."""
        llama_cpp, proxy = self.llama_cpp, self.proxy
        engine = {
            "pypi": "llama-cpp-python of pypi.index",
            "git": llama_cpp.git_url,
            "archive": llama_cpp.archive,
        }
        found = [
            ("proxy", ", ".join(f"{name} {value}" for name, value in proxy if value) or "none"),
            ("environment_file", self.environment_file or "none"),
            ("ca_certificates", ", ".join(self.ca_certificates) or "those of the host"),
            ("apt", self.apt.mirror or "the host's own apt sources"),
            ("pypi.index", self.pypi.index),
            ("llama_cpp", engine[llama_cpp.type]),
            ("ollama", self.ollama.archive or self.ollama.releases),
            ("python", self.python.archive or "the distribution"),
            ("cuda", self.cuda.type + f" {self.cuda.nvidia_repository}".rstrip()),
            *(("weights", _in_words(source)) for source in self.weights),
        ]
        return ((key, without_login(value)) for key, value in found)

    def network(self) -> Network:
        """How the controller itself reaches web servers: as the site says, and where that is silent, as the environment says."""
        given = {scheme: url for scheme, url in (("http", self.proxy.http), ("https", self.proxy.https)) if url}
        return Network(given, self.proxy.none_for, self.ca_certificates)


def _in_words(source: WeightSource) -> str:
    """A source of weights with its address."""
    match source:
        case Mirror():
            return source.url
        case Folder():
            return source.path
        case _:
            return f"{source.type} {source.endpoint}"
