"""Shows the modes of a host to people: rates with a bar for each, and the memory of each device as planned and as sampled."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from r1prov import output
from r1prov.common.units import GIB

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

BAR = 8
Document = dict[str, Any]


def compared(document: Document) -> None:
    """Shows the document about the modes of a host, see `r1prov.runs.modes`."""
    slots = "1 slot" if document["slots"] == 1 else f"{document['slots']} slots"
    form = " in MLA form" if document["mla"] else ""
    output.line(f"{document['host']}: {document['quant']}{form}, {slots} of {document['context_per_slot']:,} tokens")
    output.line()
    _rates(document)
    output.line()
    _memory(document["modes"])
    for (what, why), named in _remarks(document).items():
        output.line(f"{', '.join(named)}: {what}: {why}")
    for mode in document["modes"]:
        if told := mode["ollama"]:
            output.line(f"{mode['mode']}: {', '.join(f'{name} {value}' for name, value in told.items())}")
    for line in _circumstances(document["modes"]):
        output.line(line)
    for note in document["notes"]:
        output.line(f"{note}.")


def _remarks(document: Document) -> dict[tuple[str, str], list[str]]:
    """What went wrong or was left out, and why, with the modes that it is about."""
    found: dict[tuple[str, str], list[str]] = {}
    left_out = "left out" if document["state"] == "planned" else "not measured"
    for mode in document["modes"]:
        why = mode["failed"] or mode["left_out"] or "; ".join(mode["reasons"])
        if mode["failed"]:
            what = "failed"
        elif not mode["left_out"]:
            what = "does not fit, and is measured only where it serves nevertheless"
        else:
            what = "does not fit" if document["state"] == "planned" and _is_misfit(mode) else left_out
        if why:
            found.setdefault((what, why), []).append(mode["mode"])
    return found


def _is_misfit(mode: Document) -> bool:
    """Whether the outcome of a mode is that it does not fit. One that is the same as another is left out before that counts."""
    return mode["fits"] is False and mode["left_out"] in ("", "; ".join(mode["reasons"]))


def _circumstances(modes: Sequence[Document]) -> Iterator[str]:
    """What keeps modes that were measured from being compared as they stand there."""
    for mode in modes:
        if not mode["measured"]:
            continue
        load, at = mode["measured"]["load"], datetime.fromtimestamp(mode["measured"]["measured_unix_s"], UTC)
        if mode["measured"]["earlier"]:
            yield f"{mode['mode']}: kept from a run that was stopped, of {at:%Y-%m-%d %H:%M} UTC"
        if load["foreign"]:
            yield f"{mode['mode']}: measured while other processes kept {load['others_cores']:.1f} of {load['cores']} cores busy"


def _rates(document: Document) -> None:
    """A row for each mode, then the published figures. The bars are to one scale."""
    modes, published = document["modes"], document["published"]
    figures = [figure["decode_tokens_per_second"] for figure in published]
    planned = document["state"] == "planned"
    most = max((*((_planned(mode)[1] if planned else _decode(mode)) for mode in modes), *figures, 0.0))
    if planned:
        rows = [(mode["mode"], mode["what"], _fits(mode), _estimate(mode), _span(mode, most)) for mode in modes]
        output.table(("mode", "what it is", "outcome", "tokens/s>", ""), rows)
        output.line("The rates are estimates: `r1prov plan` says how they come about. Nothing is measured.")
    else:
        slots = document["slots"]
        users = dict.fromkeys((1, slots, 2 * slots))
        columns = [f"{number} user{'s' * (number > 1)}>" for number in users]
        columns.insert(1, "deep>")
        rows = [
            (mode["mode"], *_measured(mode, list(users)), _estimate(mode), "#" * _cells(_decode(mode), most))
            for mode in modes
        ]
        output.table(("tokens/s", "prompt>", *columns, "plan>", ""), rows)
        depths = [f"{mode['mode']} {rate['depth_tokens']:,}" for mode in modes if (rate := _rate(mode, 1, full=True))]
        if depths:
            output.line(f"deep: one user, with so many tokens in the slot before: {', '.join(depths)}")
    if published:
        output.line()
        others = [
            (each["what"], f"{rate:.2f}", "#" * _cells(rate, most))
            for each, rate in zip(published, figures, strict=True)
        ]
        output.table(("published by others", "tokens/s>", ""), others)


def _memory(modes: Sequence[Document]) -> None:
    """For each mode what each device holds, as planned and as sampled. A figure that is not known is left out."""
    devices = next((_devices(mode) for mode in modes if mode["planned"]), [])
    sampled: Sequence[int] = next(
        (mode["measured"]["memory"]["devices_bytes"] for mode in modes if mode["measured"]), []
    )
    names = [device["name"] for device in devices] or [*(f"CUDA{card}" for card in range(len(sampled))), "host"]
    rows = [("of", *(_gib(device["capacity_bytes"]) for device in devices))] if devices else []
    for mode in modes:
        if mode["planned"]:
            taken = (sum(device[f"{part}_bytes"] for part in ("weights", "kv", "compute")) for device in _devices(mode))
            rows.append((mode["mode"], *map(_gib, taken)))
        if mode["measured"]:
            memory = mode["measured"]["memory"]
            cards = memory["devices_bytes"] or [0] * (len(names) - 1)
            rows.append(("sampled" if mode["planned"] else mode["mode"], *map(_gib, (*cards, memory["ram_bytes"]))))
    if rows:
        output.table(("GiB", *(f"{name}>" for name in names)), rows)


def _devices(mode: Document) -> list[Document]:
    return [*mode["planned"]["devices"], mode["planned"]["host"]]


def _measured(mode: Document, users: Sequence[int]) -> list[str]:
    """The rates of a mode: prompt and decode of one user, of one with a filled slot, and of all users together for the other numbers."""
    if not mode["measured"]:
        return [""] * (len(users) + 2)
    alone, full = _rate(mode, 1), _rate(mode, 1, full=True)
    prompt = f"{alone['prompt_tokens_per_second']:.1f}" if alone else ""
    decodes = [f"{each['decode_tokens_per_second']:.2f}" if each else "" for each in (alone, full)]
    totals = [f"{each['decode_tokens_per_second_total']:.2f}" if (each := _rate(mode, n)) else "" for n in users[1:]]
    return [prompt, *decodes, *totals]


def _rate(mode: Document, users: int, *, full: bool = False) -> Document | None:
    """What was measured for so many users, with empty or with filled slots; None where that was not measured."""
    rates = mode["measured"]["rates"] if mode["measured"] else []
    return next((rate for rate in rates if rate["users"] == users and bool(rate["depth_tokens"]) == full), None)


def _decode(mode: Document) -> float:
    """The decode rate of one user with an empty slot; 0 where that was not measured."""
    alone = _rate(mode, 1)
    return alone["decode_tokens_per_second"] if alone else 0.0


def _planned(mode: Document) -> tuple[float, float]:
    """The low and the high estimate; 0 where the mode does not fit, or nothing is known."""
    if not mode["fits"]:
        return 0.0, 0.0
    estimate = mode["planned"]["decode_tokens_per_second"]
    return estimate["low"], estimate["high"]


def _estimate(mode: Document) -> str:
    low, high = _planned(mode)
    return f"{low:.1f} to {high:.1f}" if high else ""


def _fits(mode: Document) -> str:
    if _is_misfit(mode):
        return "does not fit"
    if mode["left_out"]:
        return "left out"
    return "not known" if mode["fits"] is None else "fits"


def _span(mode: Document, most: float) -> str:
    """A bar from the low to the high estimate."""
    low, high = (_cells(each, most) for each in _planned(mode))
    return " " * (low - 1) + "-" * (high - low + 1) if high else ""


def _cells(rate: float, most: float) -> int:
    return max(round(BAR * rate / most), 1) if rate else 0


def _gib(n_bytes: float) -> str:
    return f"{n_bytes / GIB:.1f}" if n_bytes else ""
