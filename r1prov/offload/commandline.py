"""Finds the arguments of llama-server in what people paste: a whole command line with the programs and variables before it."""

from __future__ import annotations

import re
import shlex
from pathlib import PurePath
from typing import TYPE_CHECKING

from r1prov.offload.setting import RefusedError, UnknownArgumentError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

_PROGRAMS = {"llama-server", "llama-server.exe"}
_CONTAINERS = {"docker", "podman", "nerdctl"}
_WITHOUT_VALUE = frozenset(
    {"--rm", "--detach", "--interactive", "--tty", "--init", "--privileged", "--read-only", "--publish-all", "-P"}
)
"""Options of `docker run` that have no value, besides the short ones of letters."""

_SHELLS = {"sh", "bash", "dash", "zsh"}
_OF_THE_SHELL = re.compile(r"[|&;]+|[0-9&]?>.*")
"""A word with which the shell ends a command, or sends its output elsewhere."""

_VARIABLE = re.compile(r"([A-Za-z_]\w*)=.*", re.DOTALL)
_CHANGING = ("CUDA_", "GGML_", "LLAMA_", "NVIDIA_")
"""What the names of variables begin with that may change the cards or the placement."""


def arguments(words: Sequence[str]) -> list[str]:
    """The arguments of llama-server in `words`, which may be one word with a whole line in it.

    Raises:
        RefusedError: A quote is not closed.
        UnknownArgumentError: What stands before the program would change the cards or the placement.
    """
    if len(words) == 1 and re.search(r"\s", words[0].strip()):
        try:
            words = shlex.split(re.sub(r"\\\r?\n", " ", words[0]))
        except ValueError:
            raise RefusedError("a quote in the line is not closed") from None
    end = next((place for place, word in enumerate(words) if _OF_THE_SHELL.fullmatch(word)), len(words))
    words = words[:end]
    if not words or words[0].startswith("-"):
        return list(words)
    if _name(words[0]) in _SHELLS and len(words) > 2:
        return arguments([words[-1]])
    start = next((place for place, word in enumerate(words) if _name(word) in _CONTAINERS), None)
    if start is not None and "run" in words[start:]:
        _check_variables(words[:start])
        return _in_container(words[words.index("run", start) + 1 :])
    start = next((place for place, word in enumerate(words) if _name(word) in _PROGRAMS), None)
    if start is None:
        start = next((place for place, word in enumerate(words) if not _VARIABLE.fullmatch(word)), len(words)) - 1
    _check_variables(words[: start + 1])
    return list(words[start + 1 :])


def _name(word: str) -> str:
    """The name of a program, of which the path may be one of Windows."""
    return PurePath(word.replace("\\", "/")).name.lower()


def _check_variables(words: Sequence[str]) -> None:
    for word in words:
        match = _VARIABLE.fullmatch(word)
        if match and match[1].startswith(_CHANGING) and match[1] != "CUDA_DEVICE_ORDER":
            raise UnknownArgumentError(f"r1prov does not know the effect of {word}; leave cards out with `--gpus`")


def _in_container(words: Sequence[str]) -> list[str]:
    """The arguments behind the image, and behind the program where the image does not start it by itself."""
    rest = iter(words)
    for word in rest:
        if not word.startswith("-"):
            break
        name, equals, value = word.partition("=")
        if not equals and name not in _WITHOUT_VALUE and not re.fullmatch("-[dit]+", name):
            value = next(rest, "")
        if name in {"-e", "--env"}:
            _check_variables([value])
        if name == "--gpus" and value != "all":
            raise UnknownArgumentError(f"r1prov does not know which cards `{value}` are; leave cards out with `--gpus`")
    return list(_without_program(rest))


def _without_program(words: Iterator[str]) -> Iterator[str]:
    for place, word in enumerate(words):
        if place or _name(word) not in _PROGRAMS:
            yield word
