"""Every address that a host may reach for: the `sources` of `r1prov.yml`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from r1prov.common.documents import Keys

if TYPE_CHECKING:
    from r1prov.models.catalogue import Quant


class Hub(Keys):
    """The Hugging Face hub or a mirror of it (HF_ENDPOINT). `token_file`: a file on the controller, 0600."""

    type: Literal["hub"]
    endpoint: str = "https://huggingface.co"
    """The hub, or a mirror of it (what HF_ENDPOINT names)."""
    token_file: str | None = None
    """A file on the controller, 0600, for repositories that want a login. Sent to this endpoint only."""


class ModelScope(Keys):
    """ModelScope, which carries the same repository under the same name."""

    type: Literal["modelscope"]
    endpoint: str = "https://modelscope.cn"
    """The address of ModelScope."""


class Mirror(Keys):
    """A web server, or a folder of the host as `file://`."""

    type: Literal["http"]
    url: str
    """What holds the files, or the quant's folder."""


class Folder(Keys):
    """A folder on the host, or a disk mounted there, that already holds the files."""

    type: Literal["folder"]
    path: str = Field(pattern=r"^/")
    """The folder that holds the files, or the one above the quant's folder."""


WeightSource = Annotated[Hub | ModelScope | Mirror | Folder, Field(discriminator="type")]


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
    weights: tuple[WeightSource, ...] = Field(default=(Hub(type="hub"), ModelScope(type="modelscope")), min_length=1)
    """Where the weights come from, in this order: the next one when one refuses."""


def places(source: WeightSource, quant: Quant) -> list[dict[str, Any]]:
    """A source as role `weights` takes it. A mirror or folder may hold the quant's folder or the bare files."""
    if isinstance(source, Hub | ModelScope):
        revision = quant.revision if source.type == "hub" else "master"  # ModelScope counts its own commits
        return [
            {
                "type": source.type,
                "endpoint": source.endpoint.rstrip("/"),
                "repo": quant.repo,
                "revision": revision,
                "folder": quant.folder,
            }
        ]
    key, base = ("url", source.url) if source.type == "http" else ("path", source.path)
    folders = dict.fromkeys((f"{base.rstrip('/')}/{quant.folder}".rstrip("/"), base.rstrip("/")))
    return [{"type": source.type, key: folder} for folder in folders]
