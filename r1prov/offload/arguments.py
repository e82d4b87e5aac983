"""Parses the arguments of llama-server into a `Setting`, in the way of the pinned engine (common/arg.cpp)."""

from __future__ import annotations

import math
import re
from itertools import pairwise
from typing import TYPE_CHECKING, Any, TypeVar

from r1prov.common.units import MIB
from r1prov.machines.profile import MOST_CARDS
from r1prov.offload import commandline
from r1prov.offload.pattern import compiled
from r1prov.offload.setting import (
    CACHE_TYPES,
    DENSE,
    EXPERTS,
    RefusedError,
    ReplacedError,
    Setting,
    UnknownArgumentError,
    first_experts,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

T = TypeVar("T")

MOST_SLOTS = 256
"""The engine's limit of slots (LLAMA_MAX_SEQ)."""

MOST_LAYERS = 512
"""The engine's limit of layers in a model (LLAMA_MAX_LAYERS)."""


def _cache_type(text: str) -> str:
    if text != text.lower() or text.upper() not in CACHE_TYPES:
        raise RefusedError(f"has an unsupported type: {text}; there are {', '.join(CACHE_TYPES).lower()}")
    return text.upper()


def parse(arguments: Sequence[str], *, cards: int, lent: int = 0) -> Setting:
    """Reads arguments of the pinned llama-server.

    Args:
        arguments: The words of a command line, e.g. `-ngl 35 -c 512 --cache-type-k q4_0`. Arguments without an effect on memory are
            skipped. The program and what starts it may come first, see `commandline`.
        cards: The number of cards of the machine. `--override-tensor` may name no card beyond it.
        lent: How many of these other hosts lend.

    Raises:
        RefusedError: The engine would refuse an argument.
        UnknownArgumentError: r1prov does not know how much memory an argument would take.
    """
    values: dict[str, Any] = {}
    overrides: list[tuple[str, int | None]] = []
    given = commandline.arguments(arguments)
    words = iter(enumerate(given))
    for place, word in words:
        name = word.replace("_", "-") if word.startswith("--") else word
        if name in _FLAGS:
            values |= _FLAGS[name]
        elif name in _EXPERTS_IN_RAM:
            overrides.append((EXPERTS, None))
        elif name in _OPTIONS or name in _PLACING or name in _IRRELEVANT:
            _, text = next(words, (0, None))
            if name in _FLASH and (text is None or text.startswith("--") or text.lstrip("-") in _NAMES):
                raise ReplacedError(f"{word} needs a value: on, off or auto", [place], (word, "on"))
            if text is None:
                raise RefusedError(f"{name} needs a value")
            if name in _PLACING:
                overrides += _converted(name, text, lambda rules: _PLACING[name](rules, cards))  # noqa: B023 - called at once
            elif name in _OPTIONS:
                key, convert = _OPTIONS[name]
                values[key] = _converted(name, text, convert)
        elif name not in _IRRELEVANT_FLAGS:
            raise _unknown(name, place, given)
    # Without a number of slots the server uses four that share one cache, and ignores `--no-kv-unified` (tools/server/server.cpp).
    if values.get("slots") is None:
        values |= {"slots": Setting.slots, "unified": True}
    values = {"unified": False, **values}
    return Setting(overrides=tuple(overrides), only=_only(values, overrides, cards), lent=lent, **values)


def _only(values: dict[str, Any], overrides: Sequence[tuple[str, int | None]], cards: int) -> int | None:
    """The one card of `--split-mode none`. Takes what no `Setting` has out of `values`."""
    values.pop("metadata", None)
    alone, card = values.pop("alone", False), values.pop("main_card", 0)
    if not alone or not cards:
        return None
    if card >= cards:
        raise RefusedError(f"invalid value for main_gpu: {card} (available devices: {cards})")
    if card < 0 or any(device not in {None, card} for _, device in overrides):
        raise UnknownArgumentError("--split-mode none cannot be judged with tensors on other cards, or without a card")
    return int(card)


def mended(arguments: Sequence[str], *, cards: int) -> tuple[list[str], list[str], list[str]]:
    """Arguments in which words that the engine does not take are replaced by words that mean the same.

    Returns:
        The new arguments; the words that were taken out; and the words that were put in.
    """
    words, out, put = commandline.arguments(arguments), list[str](), list[str]()
    while True:
        try:
            parse(words, cards=cards)
        except ReplacedError as error:
            out += [words[place] for place in error.places]
            put += error.others
            first, *more = error.places
            for place in reversed(more):
                del words[place]
            words[first : first + 1] = error.others
        except RefusedError:
            return words, out, put
        else:
            return words, out, put


def model_named(arguments: Sequence[str]) -> str | None:
    """The name or path of the model in the arguments; None where they name no model. The file itself is not read."""
    return next((value for word, value in pairwise(commandline.arguments(arguments)) if word in _NAMING_A_MODEL), None)


_NAMING_A_MODEL = frozenset({"-m", "--model", "-mu", "--model-url", "-hf", "-hfr", "--hf-repo", "-hff", "--hf-file"})


def _unknown(name: str, place: int, words: Sequence[str]) -> RefusedError:
    option, equals, _ = name.partition("=")
    if equals and option in _OPTIONS.keys() | _PLACING | _IRRELEVANT:
        what = f"invalid argument {name}: write the value as a separate word, `{option} ...`"
        return ReplacedError(what, [place], (option, words[place].partition("=")[2]))
    if name in _LOAD_MODES:
        places = [place for place, word in enumerate(words) if word in _LOAD_MODES]
        flags = {words[place] for place in places}
        mode = "mlock" if {"--mlock", "--no-mmap"} <= flags else _LOAD_MODES[name]
        what = f"invalid argument {name}: the engine replaced it by `--load-mode {mode}`"
        return ReplacedError(what, places, ("--load-mode", mode))
    plain = name.lstrip(_DASHES)
    if name[0] in _DASHES[1:] and plain in _NAMES:
        long = any(f"--{plain}" in known for known in (_OPTIONS, _PLACING, _FLAGS, _IRRELEVANT, _IRRELEVANT_FLAGS))
        right = f"--{plain}" if long else f"-{plain}"
        return UnknownArgumentError(f"`{name}` begins with a dash of typography; write `{right}`")
    if name in {"-dev", "--device"}:
        return UnknownArgumentError(f"{name} would change the numbers of the cards; leave cards out with `--gpus`")
    return UnknownArgumentError(
        f"{name} is not an argument of llama-server, or r1prov does not know its effect on memory"
    )


_DASHES = "-\u2010\u2011\u2012\u2013\u2014\u2212"
"""The sign that begins an option, then those that word processors and web pages put in its place."""

_LOAD_MODES = {
    "--mmap": "mmap",
    "--no-mmap": "none",
    "--mlock": "mmap+mlock",
    **dict.fromkeys(("-dio", "--direct-io"), "dio"),
    **dict.fromkeys(("-ndio", "--no-direct-io"), "auto"),
}
"""Flags of older versions of the engine, and the load mode that does the same."""


def _converted(name: str, text: str, convert: Callable[[str], T]) -> T:
    try:
        return convert(text)
    except RefusedError as refusal:
        raise type(refusal)(f"{name} {refusal}") from None
    except ValueError:
        raise RefusedError(f"{name} cannot be `{text}`") from None


LARGEST = 2**31 - 1
"""The largest whole number that the engine accepts."""


def _number(least: int, most: int = LARGEST) -> Callable[[str], int]:
    def convert(text: str) -> int:
        value = int(text)
        if not least <= value <= most:
            raise RefusedError(f"must be from {least:,} to {most:,}, not {value:,}")
        return value

    return convert


def _slots(text: str) -> int | None:
    """The number of slots; None for a number below 0, which leaves the choice to the engine."""
    return None if int(text) < 0 else _number(1, MOST_SLOTS)(text)


def _layers(text: str) -> int | None:
    """The number of entries on the cards. -1 means that the option is not set (None), and any lower number means all entries."""
    layers = {"auto": -1, "all": LARGEST}.get(text) or _number(-LARGEST)(text)
    return None if layers == -1 else layers if layers >= 0 else LARGEST


def _prompts(text: str) -> int:
    """The bytes of RAM for past prompts, from a number of MiB."""
    size = _number(-LARGEST)(text)
    if size < 0:
        raise UnknownArgumentError(f"cannot be judged with `{text}`: without a limit, past prompts may fill all RAM")
    return size * MIB


def _reused(text: str) -> int:
    """The fewest tokens of a piece that the engine moves. It moves none for a number below 1."""
    return max(_number(-LARGEST)(text), 0)


def _switch(text: str) -> bool | None:
    return None if text in {"auto", "-1"} else _on(text)


def _on(text: str) -> bool:
    if text not in _TRUE | _FALSE:
        raise ValueError(text)
    return text in _TRUE


_TRUE, _FALSE = {"on", "enabled", "true", "1"}, {"off", "disabled", "false", "0"}


def _alone(text: str) -> bool:
    """Whether one card is used alone. r1prov can judge that, and `layer`, which gives whole layers to the cards."""
    if text not in {"none", "layer", "row", "tensor"}:
        raise ValueError(text)
    if text in {"row", "tensor"}:
        raise UnknownArgumentError(
            f"cannot be judged with `{text}`: r1prov can calculate the memory of a card only for `layer` and `none`"
        )
    return text == "none"


def _other_metadata(text: str) -> None:
    """Checks that metadata which replace those of the file change no memory."""
    for rule in text.split(","):
        match = re.fullmatch(r"([^=]+)=(int|float|bool|str):.*", rule)
        if not match:
            raise RefusedError(f"has no KEY=TYPE:VALUE in `{rule}`")
        if not _WITHOUT_MEMORY.match(match[1]):
            raise UnknownArgumentError(f"cannot be judged: r1prov does not know the effect of `{match[1]}` on memory")


_WITHOUT_MEMORY = re.compile(
    r"tokenizer\.|general\.(?!architecture|alignment)|\w+\.(rope\.(freq_base|scaling\.)|attention\.layer_norm|expert_weights_scale$)"
)
"""The beginnings of keys that change no memory."""


def _shares(text: str) -> tuple[float, ...]:
    shares = tuple(float(part) for part in re.split("[,/]+", text))
    if len(shares) >= MOST_CARDS:
        raise RefusedError(f"got {len(shares)} input configs, but system only has {MOST_CARDS} devices")
    if not all(0 <= share < math.inf for share in shares):
        raise RefusedError("must be numbers from 0 on")
    return shares


def _overrides(text: str, cards: int) -> list[tuple[str, int | None]]:
    """The rules of `PATTERN=DEVICE,...`. Like llama.cpp, this splits at every comma, even inside a pattern."""
    rules: list[tuple[str, int | None]] = []
    for rule in text.split(","):
        pattern, equals, device = rule.partition("=")
        number = re.fullmatch(r"CUDA(\d+)", device)
        if not equals:
            raise RefusedError(f"finds no `=DEVICE` in `{rule}`, for a comma ends a rule, inside a pattern too")
        if device != "CPU" and not (number and int(number[1]) < cards):
            again = "; the first `=` ends a pattern, inside a group too" if ")" in device else ""
            raise RefusedError(f"knows no device `{device}`{again}")
        try:
            compiled(pattern)
        except RefusedError as error:
            raise type(error)(f"cannot use the pattern `{pattern}`: it {error}") from None
        rules.append((pattern, int(number[1]) if number else None))
    return rules


def _first_experts(text: str, _cards: int) -> list[tuple[str, int | None]]:
    return [*first_experts(min(_number(0)(text), MOST_LAYERS))]


def _first_dense(text: str, _cards: int) -> list[tuple[str, int | None]]:
    return [(rf"blk\.{layer}{DENSE}", None) for layer in range(min(_number(0)(text), MOST_LAYERS))]


_PLACING: dict[str, Callable[[str, int], list[tuple[str, int | None]]]] = dict.fromkeys(
    ("-ot", "--override-tensor"), _overrides
) | dict.fromkeys(("-ncmoe", "--n-cpu-moe"), _first_experts)
_PLACING |= dict.fromkeys(("-ncffn", "--n-cpu-ffn"), _first_dense)
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
        (("-cram", "--cache-ram"), "prompts", _prompts),
        (("--cache-reuse",), "cache_reuse", _reused),
        (("-fit", "--fit"), "fit", _on),
        (("--override-kv",), "metadata", _other_metadata),
        (("-sm", "--split-mode"), "alone", _alone),
        (("-mg", "--main-gpu"), "main_card", _number(-LARGEST)),
    )
    for name in names
}

_FLASH = ("-fa", "--flash-attn")

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
    "--cache-prompt": {"cache_prompt": True},
    "--no-cache-prompt": {"cache_prompt": False},
    "--context-shift": {"context_shift": True},
    "--no-context-shift": {"context_shift": False},
}

_IRRELEVANT = frozenset(
    """-t --threads -tb --threads-batch --threads-http --prio --prio-batch --poll --poll-batch -C --cpu-mask -Cr --cpu-range
    --cpu-strict -Cb --cpu-mask-batch -Crb --cpu-range-batch --cpu-strict-batch --numa -lm --load-mode -m --model -mu
    --model-url -hf -hfr --hf-repo -hff --hf-file -hft --hf-token -fitt --fit-target -fitc --fit-ctx -n --predict
    --n-predict --keep --temp --temperature -s --seed --top-k --top-p --min-p --typical --typical-p --repeat-penalty
    --repeat-last-n --presence-penalty --frequency-penalty --samplers --xtc-probability --dry-multiplier --logit-bias -r
    --reverse-prompt --grammar --grammar-file -j --json-schema --host --port --path --api-prefix -a --alias --tags --api-key
    --api-key-file --ssl-key-file --ssl-cert-file -to --timeout --sleep-idle-seconds --chat-template --chat-template-file
    --chat-template-kwargs -rea --reasoning --reasoning-format --reasoning-budget --slot-save-path -sps
    -dt --defrag-thold --rope-scaling --rope-scale --rope-freq-base --rope-freq-scale --yarn-orig-ctx --yarn-ext-factor
    --yarn-attn-factor --yarn-beta-slow --yarn-beta-fast --slot-prompt-similarity --media-path --log-file
    --log-colors -lv --verbosity --log-verbosity --sampler-seq --sampling-seq --top-nsigma --top-n-sigma --xtc-threshold
    --dry-base --dry-allowed-length --dry-penalty-last-n --dry-sequence-breaker --adaptive-target --adaptive-decay
    --dynatemp-range --dynatemp-exp --mirostat --mirostat-lr --mirostat-ent -l -jf --json-schema-file --reasoning-effort
    --reasoning-budget-message --sse-ping-interval --cors-origins --cors-methods --cors-headers --ui-config --webui-config
    --ui-config-file --webui-config-file --tools --tools-runtime --mcp-servers-config --mcp-servers-json --log-prompts-dir
    -ctxcp --ctx-checkpoints --swa-checkpoints -cms --checkpoint-min-step --embd-normalize""".split()  # noqa: SIM905 - a list would be a hundred lines
)
"""Arguments with a value that need no memory on a card, and no RAM beyond the host's reserve."""

_NAMES = {name.lstrip("-") for name in (*_OPTIONS, *_FLAGS, *_PLACING, *_EXPERTS_IN_RAM, *_IRRELEVANT, *_LOAD_MODES)}
"""The names of options, without their dashes."""

_IRRELEVANT_FLAGS = frozenset(
    """--metrics --props --slots --no-slots --jinja --no-jinja -cb --cont-batching -nocb --no-cont-batching --cache-idle-slots
    --no-cache-idle-slots --ignore-eos -sp --special --prefill-assistant --no-prefill-assistant --webui --no-webui --ui
    --no-ui -nr --no-repack --repack --check-tensors --warmup --no-warmup --offline -e --escape --no-escape --perf --no-perf
    -v --verbose --log-verbose --log-disable --log-timestamps --no-log-timestamps --log-prefix --no-log-prefix --no-host
    --swa-full --log-jsonl --no-log-jsonl --spm-infill --reuse-port --cors-credentials --no-cors-credentials --ui-mcp-proxy
    --no-ui-mcp-proxy --webui-mcp-proxy --no-webui-mcp-proxy -ag --agent -no-ag --no-agent --lora-init-without-apply
    --skip-chat-parsing --no-skip-chat-parsing --reasoning-preserve --no-reasoning-preserve --mmproj-auto --no-mmproj
    --no-mmproj-auto --mmproj-offload --no-mmproj-offload""".split()  # noqa: SIM905 - the same
)
