"""What llama.cpp says about memory, before it starts (llama-fit-params) and while it loads (its log). Nothing is read or run here.

A device's memory is a dict: `name` as in a plan (`CUDA0`, `host`), and `weights_bytes`, `kv_bytes`, `compute_bytes`.
"""

from __future__ import annotations

import re
from typing import Any

MIB, GIB = 1024**2, 1024**3
KINDS = {"weights": "weights", "kv": "KV cache", "compute": "compute"}
"""The kinds of memory that a model takes, and their names for people."""

# The share, or the bytes, by which something may differ from what was foreseen without a word.
PLAN_MARGINS = dict.fromkeys(KINDS, (0.05, 64 * MIB))
LOAD_MARGINS = {**PLAN_MARGINS, "weights": (0.001, 16 * MIB), "kv": (0.0, MIB)}

_BUFFER = re.compile(r"(\S+) +(model|KV|compute) buffer size = +([\d.]+) MiB")
_OF_ITS_OWN = re.compile(r"CUDA\d+|RPC\d+\[.+\]")
"""A device with a memory of its own: a card, or what another machine lends."""
_OFFLOADED = re.compile(r"offloaded (\d+)/(\d+) layers to GPU")
_LOGGED = {"model": "weights", "KV": "kv", "compute": "compute"}
_LOADED = re.compile(r"llama_server: (model loaded|listening on)")


def fit_arguments(arguments: list[str], help_text: str) -> list[str]:
    """The arguments of llama-server that llama-fit-params knows, by its own help. The others do not change what memory is taken.

    Without cards llama-fit-params leaves out weights that are repacked for the CPU. With `--no-repack` they take the same and are counted.
    """
    options = set(re.findall(r"(?<![\w-])--?[a-z][\w-]*", help_text))
    kept, keep = ["--no-repack"], False
    for word in arguments:
        if re.match(r"--?[a-zA-Z]", word):
            keep = word.partition("=")[0] in options
        if keep:
            kept.append(word)
    return kept


def fit_devices(output: str) -> list[dict[str, Any]]:
    """The devices' memory from what llama-fit-params prints: a line each, `NAME weights KV compute` in whole MiB."""
    rows = re.findall(r"^(CUDA\d+|Host) (\d+) (\d+) (\d+) *$", output, re.MULTILINE)
    return [_device(name, [int(value) * MIB for value in values]) for name, *values in rows]


def loaded(lines: list[str]) -> dict[str, Any]:
    """What the log of a start says of the memory that was taken.

    Returns:
        `devices`: their memory, RAM only as far as it is not a mapped file, whose lines count what lies between tensors too;
        `offloaded`: layers on cards, and of how many, None where the log does not say; `unlocked`: the kernel refused to lock the model
        in RAM; `whole`: the log is there to the end of the load.
    """
    sums: dict[str, dict[str, int]] = {}  # device -> kind -> bytes
    computed: dict[str, int] = {}  # buffer -> bytes
    offloaded, mapped = None, False
    for line in lines:
        buffer, layers = _BUFFER.search(line), _OFFLOADED.search(line)
        if buffer:
            name, kind, n_bytes = buffer[1], _LOGGED[buffer[2]], int(float(buffer[3]) * MIB)
            mapped |= name.endswith("_Mapped")
            kinds = sums.setdefault(name if _OF_ITS_OWN.fullmatch(name) else "host", dict.fromkeys(KINDS, 0))
            if kind == "compute":  # A new buffer for a batch takes the place of the old one.
                kinds[kind] -= computed.get(name, 0)
                computed[name] = n_bytes
            kinds[kind] += n_bytes
        elif layers:
            offloaded = [int(layers[1]), int(layers[2])]
    devices = [_device(name, list(sizes.values())) for name, sizes in sorted(sums.items())]
    for device in devices:
        if mapped and device["name"] == "host":
            del device["weights_bytes"]
    return {
        "devices": devices,
        "offloaded": offloaded,
        "unlocked": any("failed to mlock" in line for line in lines),
        "whole": any(_LOADED.search(line) for line in lines),
    }


def misfits(devices: list[dict[str, Any]], rooms: dict[str, Any], reserves: dict[str, Any]) -> list[str]:
    """One sentence for each device that has too little room for what it is to hold and for its reserve.

    Args:
        devices: their memory.
        rooms: name -> all the memory that the device has, in bytes.
        reserves: name -> bytes that are to stay free.
    """
    sentences = []
    for device in devices:
        name, taken = device["name"], sum(device[f"{kind}_bytes"] for kind in KINDS)
        room, reserve = rooms.get(name), reserves.get(name, 0)
        if room is None:
            sentences.append(f"{name} is a device that nvidia-smi does not show")
        elif taken + reserve > room:
            parts = ", ".join(f"{label} {gib(device[f'{kind}_bytes'])}" for kind, label in KINDS.items())
            short = gib(taken + reserve - room)
            sentences.append(
                f"{name} is {short} short: {parts}, together {gib(taken)}, and {gib(reserve)} that stay free, of {gib(room)}"
            )
    return sentences


def surprises(devices: list[dict[str, Any]], plan: list[dict[str, Any]]) -> list[str]:
    """One sentence for each figure in which the engine, which has read the real file, differs from the plan."""
    return _differences(devices, plan, PLAN_MARGINS, "the plan foresaw")


def load_surprises(devices: list[dict[str, Any]], confirmed: list[dict[str, Any]]) -> list[str]:
    """One sentence for each figure in which the log of a load differs from what the engine said before.

    A server makes room for fewer logits than llama-fit-params does, so of compute only more is a surprise.
    """
    before = {device["name"]: device.get("compute_bytes", 0) for device in confirmed}
    more = [
        {key: value for key, value in device.items() if key != "compute_bytes" or value > before.get(device["name"], 0)}
        for device in devices
    ]
    return _differences(more, confirmed, LOAD_MARGINS, "llama-fit-params said")


def gib(n_bytes: float) -> str:
    """Bytes for people: `21.9 GiB`, `350 MiB`."""
    return f"{n_bytes / GIB:,.1f} GiB" if n_bytes >= GIB else f"{n_bytes / MIB:,.0f} MiB"


def _device(name: str, values: list[int]) -> dict[str, Any]:
    sizes = {f"{kind}_bytes": value for kind, value in zip(KINDS, values, strict=True)}
    return {"name": "host" if name == "Host" else name, **sizes}


def _differences(
    devices: list[dict[str, Any]], foreseen: list[dict[str, Any]], margins: dict[str, Any], source: str
) -> list[str]:
    before = {device["name"]: device for device in foreseen}
    return [
        f"{device['name']} takes {device[key] / MIB:,.0f} MiB of {KINDS[kind]}, {source} {expected / MIB:,.0f} MiB"
        for device in devices
        for kind, (share, least) in margins.items()
        if (key := f"{kind}_bytes") in device
        and (expected := before.get(device["name"], {}).get(key)) is not None
        and abs(device[key] - expected) > max(share * expected, least)
    ]
