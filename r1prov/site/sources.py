"""The `sources` of `r1prov.yml`: every address from which a host may fetch something."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from r1prov.common.documents import Keys
from r1prov.common.network import Network
from r1prov.models.sources import PUBLIC, WeightSource


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


class Sources(Keys):
    """Every address from which a host may fetch something. Nothing is fetched from an address that is not here."""

    proxy: Proxy = Proxy()
    """The proxies for everything that hosts fetch."""
    environment_file: str = ""
    """A shell script on the host that is sourced before the weights are fetched. Rented machines have such scripts."""
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
    weights: tuple[WeightSource, ...] = Field(default=PUBLIC, min_length=1)
    """Where the weights come from. They are tried in this order."""

    def network(self) -> Network:
        """How the controller itself reaches web servers: as the site says, and where that is silent, as the environment says."""
        given = {scheme: url for scheme, url in (("http", self.proxy.http), ("https", self.proxy.https)) if url}
        return Network(given, self.proxy.none_for, self.ca_certificates)
