"""Reads YAML documents into typed models. Errors name file, line and what was expected, and are reported all at once."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, TypeVar

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, ValidationError

from r1prov.common import paths
from r1prov.common.errors import Problem, SiteError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from pydantic_core import ErrorDetails

M = TypeVar("M", bound="Keys")


class Keys(BaseModel):
    """The keys of a mapping that people write. Other keys are refused. The docstring below a key describes it in docs/site.md."""

    model_config = ConfigDict(extra="forbid", frozen=True, defer_build=True)

    page: ClassVar[str] = "site.md"
    """The page of the documentation that describes these keys."""


def _one_line(text: str) -> str:
    line = " ".join(text.split())
    if not line.isprintable():
        raise ValueError("it has characters that cannot be printed: write words")
    return line


OneLine = Annotated[str, AfterValidator(_one_line)]
"""Words for people, which are shown in one line."""


def load(path: Path, model: type[M]) -> M:
    """Read a YAML file and validate it.

    Raises:
        SiteError: the file cannot be read, is not YAML, or does not fit `model`. It carries one problem for each mistake.
    """
    try:
        text = path.read_text()
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        data = yaml.safe_load(text)
    except OSError as error:
        raise SiteError(
            Problem(str(path), f"cannot be read: {error.strerror}", "check the path and its permissions")
        ) from None
    except UnicodeDecodeError:
        raise SiteError(Problem(str(path), "is not text in UTF-8", "check that this is the file you meant")) from None
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise SiteError(
            Problem(f"{path}:{line}", f"is not YAML: {error.problem}", "correct this line, or one just above it")
        ) from None
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        what = f"has the character U+{ord(text[error.position]):04X}, which no text has"
        raise SiteError(Problem(f"{path}:{line}", what, "check that this is the file you meant")) from None
    except RecursionError:
        raise SiteError(Problem(str(path), "is nested too deeply to be read", "write it with fewer levels")) from None
    if node is None or not isinstance(data, dict):
        raise SiteError(
            Problem(
                str(path), "is not a mapping of keys and values", f"start from the example in {paths.page(model.page)}"
            )
        )
    if doubled := list(_doubled(path, node)):
        raise SiteError(*doubled)
    try:
        return model.model_validate(data)
    except ValidationError as error:
        details = error.errors()
        # A list with a wrong item is reported as too short as well. Only the wrong item is the cause.
        causes = [
            d
            for d in details
            if not any(other["loc"][: len(d["loc"])] == d["loc"] and other is not d for other in details)
        ]
        causes.sort(key=lambda detail: _line(node, detail["loc"]))
        raise SiteError(*(_problem(path, node, model, alike) for alike in _alike(causes))) from None


def _alike(details: Iterable[ErrorDetails]) -> Iterable[list[ErrorDetails]]:
    """The mistakes, of which those in one list that are wrong in the same key and in the same way are one."""
    groups: dict[tuple[Any, ...], list[ErrorDetails]] = {}
    for detail in details:
        alone = detail["type"] in {"extra_forbidden", "missing"}
        place = detail["loc"] if alone else tuple(part for part in detail["loc"] if not isinstance(part, int))
        groups.setdefault((place, words(detail)), []).append(detail)
    return groups.values()


def _doubled(path: Path, node: yaml.Node) -> Iterator[Problem]:
    """A problem for each key that a mapping has twice. YAML's own reader takes the last one without a word."""
    met: set[int] = set()
    left = [node]
    while left:
        each = left.pop()
        if id(each) in met:  # An alias leads to the same node again.
            continue
        met.add(id(each))
        if isinstance(each, yaml.SequenceNode):
            left += each.value
        elif isinstance(each, yaml.MappingNode):
            lines: dict[str, int] = {}
            for key, value in each.value:
                line, name = key.start_mark.line + 1, str(key.value)
                if name in lines:
                    what = f"the key `{name}` stands here again, after line {lines[name]}"
                    yield Problem(f"{path}:{line}", what, "keep one of the two")
                lines.setdefault(name, line)
                left.append(value)


def names_file(text: str) -> bool:
    """Whether what somebody has written is a file, and not the name of something that comes with r1prov."""
    path = Path(text)
    return path.suffix.lower() in {".yml", ".yaml"} or len(path.parts) > 1 or path.exists()


def glance(path: Path, key: str) -> Any:
    """Read one key at the top of a document that may be wrong elsewhere; None where the key cannot be read."""
    try:
        data = yaml.safe_load(path.read_text())
    except (OSError, ValueError, RecursionError, yaml.YAMLError):
        return None
    return data.get(key) if isinstance(data, dict) else None


def _problem(path: Path, node: yaml.Node, model: type[Keys], alike: Sequence[ErrorDetails]) -> Problem:
    """The problem of one mistake, or of several that are alike."""
    detail, location = alike[0], alike[0]["loc"]
    where = f"{path}:{_line(node, location)}"
    key, page = ".".join(str(part) for part in location), paths.page(model.page)
    if detail["type"] == "extra_forbidden":
        return Problem(where, f"unknown key `{key}`", _meant(model, location))
    if detail["type"] == "missing":
        return Problem(where, f"`{key}` is missing", f"add it; {page} describes the keys")
    if not key:  # The mistake lies in several keys together, and the message names them.
        return Problem(str(path), words(detail), f"{page} describes the keys")
    # Only a plain value is shown. A whole mapping would be long, and might hold a password.
    told = [_printable(str(each["input"])) for each in alike if isinstance(each["input"], str | int | float)]
    value = f"it says `{'` and `'.join(told)}`; " if told else ""
    keys = "` and `".join(".".join(str(part) for part in each["loc"]) for each in alike)
    return Problem(where, f"`{keys}`: {words(detail)}", f"{value}{page} describes the keys")


def _printable(text: str) -> str:
    return "".join(each if each.isprintable() else "?" for each in text)


_NO_SHA256 = "is not a sha256, which has 64 characters of 0 to 9 and a to f"
_FORMS = {
    r"^\d+\.\d+\.\d+$": "is not a version of three numbers, as 0.12.4 is",
    r"^[\w.-]*$": "is not a version, a tag or a commit: write letters, digits, `.`, `_` and `-`",
    r"^\d+\.\d$": "is not a compute capability, as 8.9 is",
    r"^/.": "is not an absolute path of a folder, as /srv/r1prov is",
    r"^/": "is not an absolute path, as /mnt/usb is",
    r"^(/.+)?$": "is not the absolute path of a file on the host, as /etc/network_turbo is",
    r"^https?://": "is not an http or https address",
    r"^https://": "is not an https address",
    r"^([0-9a-f]{64})?$": _NO_SHA256,
    r"^[0-9a-f]{64}$": _NO_SHA256,
    r"^[A-Za-z0-9_]+$": "is not a name of a group: write letters, digits and `_`",
    r"^[A-Za-z0-9][A-Za-z0-9_.-]*$": "is not a name: write letters, digits, `.`, `_` and `-`, and begin with a letter or a digit",
    r"^[^@\s]+@[^@\s]+$": "is not an address for mail, as admin@example.com is",
    r"^[A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?$|^[0-9A-Fa-f:]+$": "is neither a DNS name nor an IP address",
    r"^[A-Za-z0-9][A-Za-z0-9._-]*$": "is not the name of a file",
    r"^([A-Za-z0-9][A-Za-z0-9._-]*)?$": "is not the name of a folder",
    r"^[\w.-]+/[\w.-]+$": "is not a repository, as unsloth/DeepSeek-R1-GGUF is",
}
"""Pattern -> what to say about a value that does not match it. A test sees that each pattern is here."""


def words(detail: ErrorDetails) -> str:
    """What is wrong with a value, in plain words instead of the validator's."""
    context, given = detail.get("ctx", {}), detail["input"]
    quoted = isinstance(given, str) and given.strip().lstrip("+-").replace(".", "", 1).isdigit()
    text = "is text: write the number without quotes" if quoted else ""
    return {
        "too_short": "name at least one",
        "model_type": "is not a mapping of keys and values",
        "model_attributes_type": "is not a mapping of keys and values",
        "union_tag_invalid": f"`{context.get('tag')}` is none of {context.get('expected_tags')}",
        "union_tag_not_found": "says no `type`",
        "tuple_type": "is not a list",
        "float_type": text or "is not a number",
        "finite_number": "is not a number",
        "int_type": text or "is not a whole number",
        "string_pattern_mismatch": _FORMS.get(str(context.get("pattern")), ""),
        "literal_error": f"is none of {context.get('expected')}",
    }.get(detail["type"], detail["msg"].removeprefix("Value error, ").removeprefix("Input "))


def _line(node: yaml.Node, location: tuple[int | str, ...]) -> int:
    """The line, counted from 1, of the node at `location`. A missing key has the line of its parent."""
    line = node.start_mark.line + 1
    for part in location:
        if isinstance(node, yaml.MappingNode):
            match = next(((key, value) for key, value in node.value if key.value == str(part)), None)
            if match is None:
                continue  # This part is the tag of a union, which pydantic puts in a location, or the missing key itself.
            line, node = match[0].start_mark.line + 1, match[1]
        elif isinstance(node, yaml.SequenceNode) and isinstance(part, int):
            node = node.value[part]
            line = node.start_mark.line + 1
    return line


def _meant(model: type[Keys], location: tuple[int | str, ...]) -> str:
    """What to do about the unknown key at `location`: what may have been meant there, where such a key belongs, or what there is."""
    name = str(location[-1])
    parent, here = _place(model, location[:-1])
    beside = list(dict.fromkeys(key for each in here for key in each.model_fields))
    same_name = [path for path in dict.fromkeys(_keys(model)) if path.rpartition(".")[2] == name]
    others = [place for path in same_name if (place := path.rpartition(".")[0]) != parent]
    said = []
    if near := difflib.get_close_matches(name, beside, n=2):
        said.append(f"did you mean `{'` or `'.join(near)}`?")
    if others:
        places = ["at the top"] * ("" in others)
        places += [f"under {' or '.join(f'`{place}`' for place in others[:3] if place)}"] * any(others[:3])
        said.append(f"`{name}` belongs {' or '.join(places)}")
    if parent and not near:
        said.append(f"here there are: {', '.join(beside)}")
    return "; ".join(said) or f"{paths.page(model.page)} lists the keys"


def _place(model: type[BaseModel], location: tuple[int | str, ...]) -> tuple[str, list[type[BaseModel]]]:
    """The path of a place in a document, without numbers and tags, and the models that fit there."""
    path, here = [], [model]
    for part in location:
        if fields := [each.model_fields[str(part)] for each in here if part in each.model_fields]:
            path.append(str(part))
            here = [inner for field in fields for inner in _models(field.annotation)]
        elif isinstance(part, str):  # the tag of a union, which pydantic puts into a location
            here = [each for each in here if part in _tags(each)] or here
    return ".".join(path), here


def _tags(model: type[BaseModel]) -> tuple[Any, ...]:
    """The values of the key `type` by which a model is told from others."""
    field = model.model_fields.get("type")
    return getattr(field.annotation, "__args__", ()) if field else ()


def _keys(model: type[BaseModel], parent: str = "") -> Iterator[str]:
    """The paths of all keys of a model and of the models in it, such as `service.port`."""
    for name, field in model.model_fields.items():
        yield f"{parent}{name}"
        for inner in _models(field.annotation):
            yield from _keys(inner, f"{parent}{name}.")


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    """The models that a type annotation mentions."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in getattr(annotation, "__args__", ()):
        yield from _models(argument)


def merged(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """Merge two documents. Where both have a key, the value in `above` counts; mappings are merged key by key."""
    both = {key: merged(below[key], above[key]) for key in below.keys() & above.keys() if isinstance(above[key], dict)}
    return below | above | both
