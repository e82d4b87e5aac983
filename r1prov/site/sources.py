"""Every address that a host may reach for: the `sources` of `r1prov.yml`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from r1prov.common.documents import Keys
from r1prov.common.network import Network
from r1prov.models.sources import PUBLIC, WeightSource


class Proxy(Keys):
    """Proxies for everything the hosts fetch."""

    http: str = ""
    """For http addresses."""
    https: str = ""
    """For https addresses."""
    none_for: str = ""
    """Names and addresses to reach without a proxy, separated by commas."""


class AptSource(Keys):
    """`mirror` empty: the host's own apt configuration. Else only the mirror is used, and /etc/apt stays as it is."""

    mirror: str = ""
    """A base URL as `http://mirror.example.com/debian`, or a whole `deb` line."""


class PypiSource(Keys):
    """The package index that pip uses on the hosts."""

    index: str = Field(default="https://pypi.org/simple", pattern=r"^https?://")
    """The index or a mirror of it."""


class LlamaCppSource(Keys):
    """Where llama.cpp's source comes from: `pypi` (the llama-cpp-python sdist), `git`, or `archive` (URL or file)."""

    type: Literal["pypi", "git", "archive"] = "pypi"
    """Which of the three."""
    git_url: str = "https://github.com/ggml-org/llama.cpp"
    """For `git`."""
    archive: str = ""
    """For `archive`: a URL, a file on the controller, or a file on the host."""
    sha256: str = Field(default="", pattern=r"^([0-9a-f]{64})?$")
    """Of the sdist or the archive. Of an sdist it is known, or asked of the package index once and kept."""


class OllamaSource(Keys):
    """Where Ollama's release archive comes from: below `releases` as the project publishes them, or one archive."""

    releases: str = "https://github.com/ollama/ollama/releases/download"
    """Holds `vVERSION/ollama-linux-amd64.tgz` (`.tar.zst` from 0.14 on) and `sha256sum.txt` beside it."""
    archive: str = ""
    """One archive instead: a URL, a file on the controller, or a file on the host."""
    sha256: str = Field(default="", pattern=r"^([0-9a-f]{64})?$")
    """Of the archive. Empty: as `sha256sum.txt` beside it says."""


class PythonSource(Keys):
    """Where the chat page's Python (3.11 or 3.12) comes from on a host whose distribution has none."""

    archive: str = ""
    """A relocatable build (python-build-standalone): a URL, a file on the controller, or a file on the host."""
    sha256: str = Field(default="", pattern=r"^([0-9a-f]{64})?$")
    """Of the archive."""


class CudaSource(Keys):
    """Where nvcc comes from when the host has none; `auto` takes what the driver allows."""

    type: Literal["auto", "system", "distribution", "nvidia", "pypi"] = "auto"
    """Which of them."""
    nvidia_repository: str = ""
    """For `nvidia`: the base URL of NVIDIA's apt repository or a mirror of it."""


class Sources(Keys):
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
    ollama: OllamaSource = OllamaSource()
    """The other engine."""
    python: PythonSource = PythonSource()
    """The chat page's Python, where a host has none."""
    cuda: CudaSource = CudaSource()
    """The compiler for the GPUs."""
    weights: tuple[WeightSource, ...] = Field(default=PUBLIC, min_length=1)
    """Where the weights come from, in this order: the next one when one refuses."""

    def network(self) -> Network:
        """The controller's own way to web servers: what the site says, and what the environment says where the site is silent."""
        given = {scheme: url for scheme, url in (("http", self.proxy.http), ("https", self.proxy.https)) if url}
        return Network(given, self.proxy.none_for, self.ca_certificates)
