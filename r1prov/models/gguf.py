"""Makes a Model of the header of a GGUF file, or of a set of shards. The collection's `gguf_header` reads the header."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from r1prov.common import paths
from r1prov.common.errors import Problem, SiteError
from r1prov.models.model import Model, Tensor

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ansible_collections.r1.prov.plugins.module_utils import gguf_header, gguf_whole
else:
    gguf_header, gguf_whole = paths.module_util("gguf_header"), paths.module_util("gguf_whole")

BigEndianError = gguf_header.BigEndianError
CutShortError = gguf_header.CutShortError
LfsPointerError = gguf_header.LfsPointerError
NoGgufError = gguf_header.NoGgufError
VersionError = gguf_header.VersionError

_LARGEST, _MOST_LAYERS = 2**27, 1024
"""Of the figures of a model, and of its layers."""

_BESIDE_MODELS = {
    "adapter": "an adapter (LoRA)",
    "mmproj": "a projector for images or sound",
    "imatrix": "an importance matrix",
}
"""By `general.type`."""

TURN_BYTES = "name the little-endian file, or turn this one with `gguf-convert-endian FILE little` of the package gguf"
"""What to do about a big-endian file."""

_THOUGHT_ENDS = "</think>"
"""A template that names it does so to leave what stands before it out of earlier answers, as that of R1 does."""

_SHARD = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf")


class RemediedError(ValueError):
    """An error that carries its own remedy.

    Attributes:
        remedy: what to do next.
    """

    def __init__(self, what: str, remedy: str) -> None:
        super().__init__(what)
        self.remedy = remedy


class MisnamedError(RemediedError):
    """A shard under a name that is not its own."""


class UnservableError(RemediedError):
    """A sound file that is no language model, or none that llama.cpp reads."""


@dataclass(frozen=True)
class Header:
    """What stands before the data of one file.

    Attributes:
        metadata: by key; of long arrays only the length is kept, as `range(length)`.
        tensors: in order.
        n_bytes: bytes of a whole file with this header.
    """

    metadata: dict[str, Any]
    tensors: tuple[Tensor, ...]
    n_bytes: int


def read(path: Path) -> Model:
    """The model in a file, or in a set of shards of which `path` is any.

    Raises:
        SiteError: no such file, no GGUF file, cut short, a shard missing, or a model of unknown make.
    """
    shards = files(path)
    try:
        if not path.is_file():
            _checked(path)  # which says what stands there instead
        missing = [shard.name for shard in shards if not shard.exists()]
    except OSError as error:
        raise _unreadable(path, error) from None
    if missing and len(shards) > 1:
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        what = f"shards are missing beside it: {', '.join(missing[:3])}{more}"
        raise _wrong(path, what, "fetch them into the same folder")
    headers = [_checked(shard) for shard in shards]
    try:
        return joined(path.name, headers)
    except MisnamedError as error:
        raise _wrong(path, str(error), _link_to(path) or error.remedy) from None
    except UnservableError as error:
        raise _wrong(path, str(error), error.remedy) from None
    except ValueError as error:
        raise _wrong(
            path, str(error), "fetch it anew, all shards from one source, under the names that they have there"
        ) from None


def names(name: str) -> list[str]:
    """The files of the set that `name` is one of, by their names; often itself alone."""
    parts = _SHARD.fullmatch(name)
    count = int(parts["count"]) if parts else 0
    if not parts or not 1 <= int(parts["number"]) <= count:
        return [name]
    return [f"{parts['stem']}-{number:05d}-of-{count:05d}.gguf" for number in range(1, count + 1)]


def joined(name: str, headers: Sequence[Header]) -> Model:
    """The model in the files with these headers, in the order of the set.

    Raises:
        UnservableError: they are of something else than a language model.
        ValueError: they are not all of a set, or damaged; one sentence.
    """
    _check_places(headers)
    first = headers[0].metadata
    tensors = tuple(tensor for header in headers for tensor in header.tensors)
    files = names(name)
    if len(files) != len(headers):
        files = [f"file {number} of {len(headers)}" for number in range(1, len(headers) + 1)]
    listed = [(file, each.tensors) for file, each in zip(files, headers, strict=True)]
    tokens = first.get("tokenizer.ggml.tokens")

    def check_whole(architecture: str) -> None:
        gguf_whole.check_whole(
            listed,
            architecture,
            lambda key: _whole_number(first.get(f"{architecture}.{key}")),
            len(tokens) if isinstance(tokens, (list, range)) else None,
        )

    try:
        found = model(name, first, tensors)
    except UnservableError:
        raise
    except ValueError:
        # Where a tensor stands twice, others are missing, and what is left may contradict the metadata. Which it is helps more.
        if len({tensor.name for tensor in tensors}) < len(tensors):
            check_whole(_architecture(first))
        raise
    check_whole(found.architecture)
    wanted = first.get("split.tensors.count", len(tensors))
    if wanted != len(tensors):
        raise ValueError(f"the set has {len(tensors)} tensors of {wanted}")
    return found


def _whole_number(content: Any) -> int | None:
    return content if isinstance(content, int) and not isinstance(content, bool) else None


def _check_places(headers: Sequence[Header]) -> None:
    """That each header is of the shard that its place in the set wants."""
    counts = [each.metadata.get("split.count", 1) for each in headers]
    if any(_whole_number(count) is None for count in counts):
        raise ValueError("its metadata are damaged: `split.count` is no whole number")
    if len(headers) == 1:
        if counts[0] not in {0, 1}:
            number = headers[0].metadata.get("split.no")
            own = (
                f"-{number + 1:05d}-of-{counts[0]:05d}.gguf"
                if isinstance(number, int)
                else f"-00001-of-{counts[0]:05d}.gguf"
            )
            what = f"it is one shard of {counts[0]}, but its name does not end with {own}"
            raise MisnamedError(what, f"rename all {counts[0]} shards, this one to NAME{own}, into one folder")
        return
    for place, (each, shards) in enumerate(zip(headers, counts, strict=True)):
        number = each.metadata.get("split.no")
        which = f"file {place + 1} of {len(headers)} of the set"
        if shards != len(headers):
            raise ValueError(f"{which} belongs to another set: its header says `split.count` {shards}")
        if number != place:
            what = f"{which} holds another shard: its header says `split.no` {number}, where {place} belongs"
            raise MisnamedError(
                what,
                "rename the shards: look up where they come from, and let them lie under the names that they have there",
            )


def header(stream: BinaryIO) -> Header:
    """The header at the start of `stream`: a file, or as much of one as was fetched.

    Raises:
        CutShortError: it is not all of it.
        ValueError: it is none; one sentence.
    """
    found = gguf_header.header(stream, Path())
    tensors = tuple(Tensor(tensor.name, tensor.shape, tensor.type_name) for tensor in found.tensors)
    return Header({key: gguf_header.value(raw) for key, raw in found.keys.items()}, tensors, found.n_bytes)


def model(name: str, metadata: dict[str, Any], tensors: Sequence[Tensor]) -> Model:
    """What the metadata say of the model.

    Raises:
        UnservableError: they are of something else than a language model.
        ValueError: a key that every model has is missing, says what cannot be, or what the tensors contradict.
    """
    architecture = _architecture(metadata)

    def number(key: str, default: int | None = None, *, least: int = 0, most: int = _LARGEST) -> int:
        value = metadata.get(f"{architecture}.{key}", default)
        if isinstance(value, list):  # one for each layer; the largest is what memory is made for
            value = max(value, default=None)
        if not isinstance(value, int):
            raise ValueError(f"its metadata lack `{architecture}.{key}`")  # noqa: TRY004 - wrong content of a file
        if not least <= value <= most:
            raise ValueError(f"its metadata are damaged: `{architecture}.{key}` is {value:,}")
        return value

    blocks = number("block_count", least=1, most=_MOST_LAYERS)
    idle_layers = number("nextn_predict_layers", 0, most=blocks - 1)
    heads, width = number("attention.head_count"), number("embedding_length", least=1)
    kv_heads = number("attention.head_count_kv", heads)
    if bool(heads) != bool(kv_heads) or (heads and heads % kv_heads):
        raise ValueError(f"its metadata are damaged: its {heads} heads cannot share {kv_heads} of K and V")
    key_length, value_length = (
        number(f"attention.{which}_length", width // heads if heads else 0, least=int(heads > 0))
        for which in ("key", "value")
    )
    experts_used = number("expert_used_count", 0)
    if experts_used == 0 and any(tensor.is_experts for tensor in tensors):
        raise ValueError(f"it contradicts itself: it has experts, and `{architecture}.expert_used_count` is 0")
    embedding = next((tensor for tensor in tensors if tensor.name == "token_embd.weight"), None)
    if embedding is None or len(embedding.shape) != 2:
        raise ValueError("it holds no token embedding, so it is no language model")
    if embedding.shape[0] != width:
        raise ValueError(
            f"it contradicts itself: `{architecture}.embedding_length` is {width:,}, its token embedding is {embedding.shape[0]:,} wide"
        )
    if {"attn_kv_b.weight", "attn_k_b.weight"} <= {tensor.kind for tensor in tensors}:
        what = f"it has its attention in both forms ({len(tensors)} tensors), which llama.cpp does not read"
        raise UnservableError(what, "take the file as it was published, in one form")
    layers = blocks - idle_layers
    held = max((tensor.layer + 1 for tensor in tensors if tensor.layer is not None), default=layers)
    if held < layers:
        raise ValueError(
            f"it contradicts itself: `{architecture}.block_count` is {blocks}, its tensors are of {held} layers"
        )
    return Model(
        name=name,
        architecture=architecture,
        layers=layers,
        idle_layers=idle_layers,
        heads=heads,
        kv_heads=kv_heads,
        key_length=key_length,
        value_length=value_length,
        mla=f"{architecture}.attention.key_length_mla" in metadata,
        head_key_length=number("attention.key_length_mla", key_length),
        rope_length=number("rope.dimension_count", key_length),
        vocabulary=embedding.shape[1],
        experts_used=experts_used,
        expert_weights_normed=bool(metadata.get("deepseek2.expert_weights_norm", architecture != "deepseek2")),
        expert_weights_scaled=metadata.get("deepseek2.expert_weights_scale", 0) not in (0, 1),
        expert_groups=number("expert_group_count", 1),
        expert_groups_used=number("expert_group_used_count", 1),
        context_length=number("context_length", least=1),
        tensors=tuple(tensors),
        thinks=_THOUGHT_ENDS in str(metadata.get("tokenizer.chat_template")),
    )


def _architecture(metadata: dict[str, Any]) -> str:
    """The architecture, where the file says one and is no mere companion of a model."""
    architecture = metadata.get("general.architecture")
    kind = "mmproj" if architecture == "clip" else str(metadata.get("general.type"))  # older projectors name no type
    if kind in _BESIDE_MODELS:
        remedy = "name the file of the language model that it goes with"
        raise UnservableError(f"it is {_BESIDE_MODELS[kind]}, no language model", remedy)
    if not isinstance(architecture, str):
        raise ValueError("its metadata lack `general.architecture`")  # noqa: TRY004 - wrong content of a file
    return architecture


def files(path: Path) -> list[Path]:
    """The files of the set that `path` is one of, by its name; often itself alone."""
    if not path.name:  # `.` and `/`
        return [path]
    return [path.with_name(name) for name in names(path.name)]


def _checked(path: Path) -> Header:
    try:
        if path.exists() and not (path.is_file() or path.is_dir()):
            raise _wrong(path, "it is no regular file", "name a GGUF file")
        with path.open("rb") as stream:
            found = header(stream)
            size = stream.seek(0, 2)
            goes_on = _goes_on(stream, found)
    except OSError as error:
        raise _unreadable(path, error) from None
    except BigEndianError as error:
        raise _wrong(path, str(error), TURN_BYTES) from None
    except LfsPointerError as error:
        raise _wrong(path, str(error), "`git lfs pull` fetches it") from None
    except NoGgufError as error:
        raise _wrong(path, str(error), error.remedy or "fetch it anew, or name another file") from None
    except ValueError as error:
        raise _wrong(path, str(error), "fetch it anew, or name another file") from None
    if size < found.n_bytes:
        raise _wrong(path, f"it is cut short: {size:,} bytes of {found.n_bytes:,}", "go on with the download")
    if goes_on:
        what = (
            "it is several GGUF files one behind the other, as `cat` joins shards, and the engine reads only the first"
        )
        raise _wrong(path, what, "name the first shard, or join the shards with `llama-gguf-split --merge FIRST NEW`")
    return found


def _goes_on(stream: BinaryIO, found: Header) -> bool:
    """Whether another GGUF file begins where this one ends."""
    for end in {found.n_bytes, gguf_header.padded(found.n_bytes, gguf_header.DEFAULT_ALIGNMENT)}:
        stream.seek(end)
        if stream.read(4) == b"GGUF":
            return True
    return False


def _link_to(path: Path) -> str | None:
    """What to do about a file that the hub's cache keeps under its digest: the name that it has in a snapshot."""
    if path.parent.name != "blobs":
        return None
    links = (link for link in path.parent.parent.glob("snapshots/*/**/*.gguf") if link.exists() and link.samefile(path))
    return f"name it as its snapshot does: {next(links, 'snapshots/REVISION/NAME.gguf')}"


def _unreadable(path: Path, error: OSError) -> SiteError:
    return _wrong(path, f"it cannot be read: {error.strerror}", _remedy(error, path))


def _remedy(error: OSError, path: Path) -> str:
    if isinstance(error, IsADirectoryError):
        inside = sorted(path.glob("*.gguf"))
        return f"name a file in it, e.g. {inside[0]}" if inside else "name a GGUF file; this folder has none"
    return "give yourself the right to read it" if isinstance(error, PermissionError) else "check the path"


def _wrong(path: Path, what: str, remedy: str) -> SiteError:
    return SiteError(Problem(str(path), what, remedy))
