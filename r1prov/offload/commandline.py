"""Finds the arguments of llama-server in what people paste: a command line, a script of some lines, or a unit of systemd.

Whatever stands before the program is taken off, and so is what the shell does with its output. Nothing is taken off in silence that would
change the cards or the placement.
"""

from __future__ import annotations

import re
import shlex
from pathlib import PurePath
from typing import TYPE_CHECKING

from r1prov.offload.setting import RefusedError, UnknownArgumentError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

_PROGRAM = re.compile(r"llama-server(-[\w.-]+)?|.*llama-server(-[\w.-]+)?\.exe")
"""The names of the program. A shell that ate the backslashes of a Windows path leaves a longer one."""

_CONTAINERS = {"docker", "podman", "nerdctl", "apptainer", "singularity"}
_WITHOUT_VALUE = frozenset(
    """--rm --detach --interactive --tty --init --privileged --read-only --publish-all --no-healthcheck --oom-kill-disable --quiet
    --disable-content-trust --sig-proxy --env-host --http-proxy --replace --rmi --no-hosts --no-hostname --tls-verify --nv --nvccli
    --rocm --cleanenv --containall --contain --fakeroot --writable --writable-tmpfs --no-home --no-TTY --build --no-deps
    --service-ports --use-aliases --quiet-pull --remove-orphans""".split()  # noqa: SIM905 - a list would be as many lines
)
"""Long options of what runs a container that have no value."""

_SHORT_WITHOUT_VALUE = "ditqPT"
_ENDS = re.compile(r"[|&;\n]+")
"""A word with which a command ends."""

_REDIRECT = re.compile(r"[0-9&]?(?:>>?|<)&?([^<>|]*)")
"""What sends the output elsewhere, or brings the input. A token of a model such as `<think>` is none."""

_VARIABLE = re.compile(r"([A-Za-z_]\w*)=(.*)", re.DOTALL)
_CHANGING = ("CUDA_", "GGML_", "LLAMA_", "NVIDIA_")
"""What the names of variables begin with that may change the cards or the placement."""

_HARMLESS = {"CUDA_DEVICE_ORDER", "CUDA_HOME", "CUDA_PATH", "CUDA_LAUNCH_BLOCKING", "LLAMA_API_KEY"}
_ALL_CARDS = {("NVIDIA_VISIBLE_DEVICES", "all"), ("NVIDIA_DRIVER_CAPABILITIES", "all")}
_WINDOWS = re.compile(r"\b[A-Za-z]:\\|\.exe\b")
_UNIT = re.compile(r"^\s*ExecStart=[-@:+!|]*(.*)$", re.MULTILINE)
_OF_UNIT = re.compile(r"^\s*Environment=(.*)$", re.MULTILINE)

_OTHER_PROGRAMS = {
    "ollama": "Ollama places the model itself; `r1prov plan` says what to tell it",
    **dict.fromkeys(
        (
            "llama-cli",
            "llama-completion",
            "llama-bench",
            "llama-batched-bench",
            "llama-perplexity",
            "llama-run",
            "llama-swap",
            "main",
            "server",
        ),
        "it is another program of llama.cpp, with other defaults; write the arguments as for llama-server",
    ),
    **dict.fromkeys(
        ("python", "python3"),
        "llama_cpp.server has arguments of its own: `--n_ctx 8192` is `--ctx-size 8192` of llama-server",
    ),
    **dict.fromkeys(
        ("vllm", "koboldcpp", "lms", "sglang"), "it is another engine; write the arguments as for llama-server"
    ),
}


def arguments(words: Sequence[str]) -> list[str]:
    """The arguments of llama-server in `words`, which may be one word with a whole line or several lines in it.

    Raises:
        RefusedError: A quote is not closed.
        UnknownArgumentError: The words are another program's, or what stands before the program would change the cards or the placement.
    """
    if len(words) == 1 and (not words[0].strip() or re.search(r"\s", words[0].strip())):
        words = _split(words[0])
    if not words or words[0].startswith("-"):
        return list(_own(words))
    container = next((place for place, word in enumerate(words) if _name(word) in _CONTAINERS), None)
    start = next((place for place, word in enumerate(words) if _PROGRAM.fullmatch(_name(word))), None)
    if container is not None and "run" in words[container:] and (start is None or container < start):
        run = words.index("run", container)
        _check_variables(words[:run])
        return _in_container(list(_own(words[run + 1 :])))
    if start is not None:
        _check_variables(words[:start])
        rest = list(_own(words[start + 1 :]))
        # The first such word may be the name of a session or of a unit.
        again = rest and (_PROGRAM.fullmatch(_name(rest[0])) or (len(rest) == 1 and _holds_program(rest[0])))
        return arguments(rest) if again else rest
    inner = next((place for place, word in enumerate(words) if _holds_program(word)), None)
    if inner is not None:  # a whole line is handed to a shell, to another host, or to a session
        _check_variables(words[:inner])
        return arguments([words[inner]])
    start = next((place for place, word in enumerate(words) if not _VARIABLE.fullmatch(word)), len(words))
    _check_variables(words[:start])
    if start < len(words) and not words[start].startswith("-"):
        raise UnknownArgumentError(_no_program(words[start]))
    return list(_own(words[start:]))


def _no_program(word: str) -> str:
    known = _OTHER_PROGRAMS.get(_name(word).removesuffix(".exe"), "")
    if known:
        return f"`{word}` is not llama-server: {known}"
    return f"`{word}` is neither llama-server nor an argument of it, and no llama-server follows"


def _split(text: str) -> list[str]:
    """The words of a text, in which ends of lines and `;` are words of their own.

    A line that begins with a dash goes on with the one before it, because a backslash at the end is often lost.
    """
    text = re.sub(r"[\\^`][ \t]*\r?\n", " ", text.strip()).replace("\r", "").replace("\u00a0", " ")
    text = re.sub(r"(?<=\n)[ \t]*#(?!.*llama-server).*\n", "", text)
    starts = [line for line in _UNIT.findall(text) if line.strip()]
    if starts:
        text = " ".join((*_OF_UNIT.findall(text), starts[-1]))
    lexer = shlex.shlex(text, posix=True, punctuation_chars=";\n")
    lexer.whitespace, lexer.whitespace_split, lexer.commenters = " \t", True, ""
    if _WINDOWS.search(text):
        lexer.escape = ""
    try:
        words = list(_without_comments(lexer))
    except ValueError:
        raise RefusedError("a quote in the line is not closed") from None
    following = [*words, ""][1:]
    return [word for word, after in zip(words, following, strict=True) if word.strip("\n") or not after.startswith("-")]


def _without_comments(words: Iterable[str]) -> Iterator[str]:
    """The words without those from a `#` to the end of its line. A `#` that begins the text is the prompt of root."""
    comment = False
    for place, word in enumerate(words):
        if "\n" in word:
            comment = False
            yield word
            continue
        comment |= place > 0 and word.startswith("#")
        if not comment:
            yield word


def _own(words: Sequence[str]) -> Iterator[str]:
    """The words up to the end of the command, without what sends its output elsewhere."""
    rest = iter(words)
    for word in rest:
        if _ENDS.fullmatch(word):
            return
        redirect = _REDIRECT.fullmatch(word)
        if not redirect:
            yield word
        elif not redirect[1]:
            next(rest, None)


def _name(word: str) -> str:
    """The name of a program, of which the path may be one of Windows."""
    return PurePath(word.replace("\\", "/")).name.lower()


def _holds_program(word: str) -> bool:
    """Whether a word is a whole line that starts the program."""
    return bool(re.search(r"(?:^|[\s/\\])llama-server(?:\.exe)?\s", word))


def _check_variables(words: Sequence[str]) -> None:
    for word in words:
        match = _VARIABLE.fullmatch(word)
        if not match or not match[1].startswith(_CHANGING) or match[1] in _HARMLESS or match.groups() in _ALL_CARDS:
            continue
        if match[1].startswith("LLAMA_ARG_"):
            raise UnknownArgumentError(f"r1prov does not read {word}; write it as an argument")
        remedy = "; leave cards out with `--gpus`" if "DEVICES" in match[1] else ""
        raise UnknownArgumentError(f"r1prov does not know the effect of {word}{remedy}")


def _in_container(words: Sequence[str]) -> list[str]:
    """The arguments behind the image, and behind the program where the image does not start it by itself."""
    rest = iter(words)
    for word in rest:
        if not word.startswith("-"):
            break
        name, value = _option(word, rest)
        if name in {"-e", "--env"}:
            _check_variables([value])
        if (name == "--gpus" and value != "all") or (
            name == "--device" and re.fullmatch(r"nvidia\.com/gpu=(?!all).*", value)
        ):
            raise UnknownArgumentError(f"r1prov does not know which cards `{value}` are; leave cards out with `--gpus`")
    behind = list(rest)
    if behind[:1] == ["--server"]:  # what the images with all programs want to hear first
        del behind[0]
    return behind if not behind or behind[0].startswith("-") else arguments(behind)


def _option(word: str, rest: Iterator[str]) -> tuple[str, str]:
    """An option of what runs a container, and its value, which may be the next word. Short ones may be joined: `-itp 80:80`."""
    if word.startswith("--"):
        name, equals, value = word.partition("=")
        return name, value if equals or name in _WITHOUT_VALUE else next(rest, "")
    letters = word[1:].lstrip(_SHORT_WITHOUT_VALUE)
    if not letters:
        return word, ""
    return f"-{letters[0]}", letters[1:].removeprefix("=") or next(rest, "")
