"""How llama-server is started, as far as memory depends on it. `parse` reads its arguments."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

T = TypeVar("T")

EXPERTS = r"\.ffn_(up|down|gate|gate_up)_(ch|)exps"
"""What `--cpu-moe` moves: llama.cpp's own pattern."""


class RefusedError(ValueError):
    """The engine would not start with these arguments; the message says why."""


class UnknownArgumentError(RefusedError):
    """What the engine takes with this argument cannot be told."""


@dataclass(frozen=True)
class Setting:
    """The arguments of llama-server that memory depends on. The defaults are the pinned engine's.

    Attributes:
        context: tokens of the whole cache; 0 for as many as the model was trained for.
        batch: tokens that a client's prompt is cut into.
        micro_batch: tokens computed at once.
        slots: answers at once.
        unified: all slots share one cache.
        gpu_layers: entries on the cards, the output being the last; None for all.
        split: shares of the cards; empty for shares by their memory.
        overrides: patterns of tensor names and the device they go to: a card's number, or None for RAM. The first that matches wins.
        flash: flash attention; None where it is possible.
        cache_on_cards: a layer's cache lies with the layer, else in RAM.
        offload: large batches are computed on a card although their weights lie in RAM.
    """

    context: int = 0
    batch: int = 2048
    micro_batch: int = 512
    slots: int = 4
    unified: bool = True
    type_k: str = "F16"
    type_v: str = "F16"
    gpu_layers: int | None = None
    split: tuple[float, ...] = ()
    overrides: tuple[tuple[str, int | None], ...] = ()
    flash: bool | None = None
    cache_on_cards: bool = True
    offload: bool = True


def rules(setting: Setting, between: str) -> str:
    """The overrides as `--override-tensor` takes them, which llama-server parts by `,` and llama-bench by `;`."""
    return between.join(f"{pattern}={'CPU' if card is None else f'CUDA{card}'}" for pattern, card in setting.overrides)


CACHE_TYPES = ("F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "IQ4_NL", "Q5_0", "Q5_1")


MOST_SLOTS = 256
"""LLAMA_MAX_SEQ."""

MOST_LAYERS = 512
"""LLAMA_MAX_LAYERS: no model has more."""


def _cache_type(text: str) -> str:
    if text.upper() not in CACHE_TYPES:
        raise RefusedError(f"has an unsupported type: {text}; there are {', '.join(CACHE_TYPES).lower()}")
    return text.upper()


def parse(arguments: Sequence[str], *, cards: int) -> Setting:
    """Reads arguments of the pinned llama-server.

    Args:
        arguments: e.g. `-ngl 35 -c 512 --cache-type-k q4_0`; those that do not change what memory is taken may be among them.
        cards: how many there are; `--override-tensor` may name no other.

    Raises:
        RefusedError: the engine would refuse an argument.
        UnknownArgumentError: no argument of which r1prov knows what it would take.
    """
    values: dict[str, Any] = {}
    overrides: list[tuple[str, int | None]] = []
    words = iter(arguments)
    for word in words:
        name, equals, value = word.partition("=") if word.startswith("--") else (word, "", "")
        if name in _FLAGS:
            values |= _FLAGS[name]
        elif name in _EXPERTS_IN_RAM:
            overrides.append((EXPERTS, None))
        elif name in _OPTIONS or name in _PLACING or name in _IRRELEVANT:
            text = value if equals else next(words, None)
            if text is None:
                raise RefusedError(f"{name} wants a value")
            if name in _PLACING:
                overrides += _converted(name, text, lambda rules: _PLACING[name](rules, cards))  # noqa: B023 - called at once
            elif name in _OPTIONS:
                key, convert = _OPTIONS[name]
                values[key] = _converted(name, text, convert)
        elif name not in _IRRELEVANT_FLAGS:
            raise UnknownArgumentError(f"{word} is no argument of llama-server whose effect on memory is known here")
    # Without a number of slots the server takes four that share one cache, whatever was said of that (tools/server/server.cpp).
    if values.get("slots") is None:
        values |= {"slots": Setting.slots, "unified": True}
    values = {"unified": False, **values}
    return Setting(overrides=tuple(overrides), **values)


def _converted(name: str, text: str, convert: Callable[[str], T]) -> T:
    try:
        return convert(text)
    except RefusedError as refusal:
        raise RefusedError(f"{name} {refusal}") from None
    except ValueError:
        raise RefusedError(f"{name} cannot be `{text}`") from None


LARGEST = 2**31 - 1
"""Of the engine's numbers."""


def _number(least: int, most: int = LARGEST) -> Callable[[str], int]:
    def convert(text: str) -> int:
        value = int(text)
        if not least <= value <= most:
            raise RefusedError(f"must be from {least:,} to {most:,}, not {value:,}")
        return value

    return convert


def _slots(text: str) -> int | None:
    """A number below 0 leaves it to the engine."""
    return None if int(text) < 0 else _number(1, MOST_SLOTS)(text)


def _layers(text: str) -> int | None:
    """Every number below 0 means all."""
    layers = -1 if text in {"all", "auto"} else _number(-LARGEST)(text)
    return layers if layers >= 0 else None


def _switch(text: str) -> bool | None:
    words = {"on": True, "1": True, "true": True, "off": False, "0": False, "false": False, "auto": None, "-1": None}
    if text not in words:
        raise ValueError(text)
    return words[text]


def _shares(text: str) -> tuple[float, ...]:
    shares = tuple(float(part) for part in re.split("[,/]", text))
    if not all(0 <= share < math.inf for share in shares):
        raise RefusedError("must be numbers from 0 on")
    return shares


def _overrides(text: str, cards: int) -> list[tuple[str, int | None]]:
    """`PATTERN=DEVICE,...`, as llama.cpp takes it apart: at every comma."""
    rules: list[tuple[str, int | None]] = []
    for rule in text.split(","):
        pattern, equals, device = rule.partition("=")
        number = re.fullmatch(r"CUDA(\d+)", device)
        if not equals or (device != "CPU" and not (number and int(number[1]) < cards)):
            raise RefusedError(f"knows no device `{device}`")
        try:
            re.compile(pattern)
        except re.error as error:
            raise RefusedError(f"cannot use the pattern `{pattern}`: {error}") from None
        rules.append((pattern, int(number[1]) if number else None))
    return rules


def _first_experts(text: str, _cards: int) -> list[tuple[str, int | None]]:
    return [(rf"blk\.{layer}{EXPERTS}", None) for layer in range(min(_number(0)(text), MOST_LAYERS))]


_PLACING: dict[str, Callable[[str, int], list[tuple[str, int | None]]]] = dict.fromkeys(
    ("-ot", "--override-tensor"), _overrides
) | dict.fromkeys(("-ncmoe", "--n-cpu-moe"), _first_experts)
_EXPERTS_IN_RAM = frozenset({"-cmoe", "--cpu-moe"})

_OPTIONS: dict[str, tuple[str, Callable[[str], object]]] = {
    name: (key, convert)
    for names, key, convert in (
        (("-c", "--ctx-size"), "context", _number(0)),
        (("-b", "--batch-size"), "batch", _number(1)),
        (("-ub", "--ubatch-size"), "micro_batch", _number(1)),
        (("-np", "--parallel"), "slots", _slots),
        (("-ctk", "--cache-type-k"), "type_k", _cache_type),
        (("-ctv", "--cache-type-v"), "type_v", _cache_type),
        (("-ngl", "--gpu-layers", "--n-gpu-layers"), "gpu_layers", _layers),
        (("-ts", "--tensor-split"), "split", _shares),
        (("-fa", "--flash-attn"), "flash", _switch),
    )
    for name in names
}

_FLAGS: dict[str, dict[str, bool]] = {
    "-kvu": {"unified": True},
    "--kv-unified": {"unified": True},
    "-no-kvu": {"unified": False},
    "--no-kv-unified": {"unified": False},
    "-kvo": {"cache_on_cards": True},
    "--kv-offload": {"cache_on_cards": True},
    "-nkvo": {"cache_on_cards": False},
    "--no-kv-offload": {"cache_on_cards": False},
    "--op-offload": {"offload": True},
    "--no-op-offload": {"offload": False},
}

_IRRELEVANT = frozenset(
    """-t --threads -tb --threads-batch --prio --poll -n --predict --temp --seed --top-k --top-p --min-p --host --port -a --alias --api-key
    --api-key-file -m --model -fit --fit -lm --load-mode --numa -to --timeout --chat-template --chat-template-file --reasoning-format
    --slot-save-path --cache-reuse -cram --cache-ram --log-file -lv --verbosity""".split()  # noqa: SIM905 - a list would be forty lines
)
"""Arguments with a value that take no memory on a card, and none in RAM beyond the host's reserve."""

_IRRELEVANT_FLAGS = frozenset(
    """--metrics --slots --no-slots --jinja --no-jinja -cb --cont-batching --no-webui --no-ui --mlock --mmap --no-mmap -nr --no-repack
    --repack -v --verbose --no-warmup --offline --props --log-timestamps --log-prefix""".split()  # noqa: SIM905 - the same
)
