"""The measurements of a host that are kept, and the rate that a new one is held against."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any

from ansible_collections.r1.prov.plugins.module_utils.files import read_json, write_whole
from ansible_collections.r1.prov.plugins.module_utils.host_load import in_words

if TYPE_CHECKING:
    from pathlib import Path

SCHEMA = 3
KEPT = 10
COMPARED = 5
"""A new rate is held against the median of so many."""


def read_result(file: Path) -> dict[str, Any]:
    """A result; empty where there is none that this version can read."""
    result = read_json(file)
    return result if result.get("schema") == SCHEMA else {}


def history(folder: Path) -> list[dict[str, Any]]:
    """The last results that this version can read, oldest first."""
    kept: list[dict[str, Any]] = read_json(folder / "history.json").get("results", [])
    return [result for result in kept if result.get("schema") == SCHEMA]


def keep(folder: Path, result: dict[str, Any]) -> None:
    """Writes the result, and adds it to the last ones."""
    folder.mkdir(parents=True, exist_ok=True)
    results = [*history(folder), result][-KEPT:]
    write_whole(folder / "history.json", json.dumps({"results": results}, ensure_ascii=False) + "\n")
    write_whole(folder / "last.json", json.dumps(result, indent=2, ensure_ascii=False) + "\n")


def rate(result: dict[str, Any]) -> float:
    """The tokens per second that one user gets."""
    return float(result["sweep"][0]["decode_tokens_per_second_each"])


def setting(result: dict[str, Any]) -> list[Any]:
    """What makes rates comparable: all that decides how fast a model is, but for the version of the engine."""
    subject = result["subject"]
    keys = ("engine", "model", "model_file", "context_per_slot", "slots", "command", "declared")
    return [*(subject[key] for key in keys), result["sweep"][0]["decode_tokens"]]


def compare(result: dict[str, Any], earlier: list[dict[str, Any]], at_least: float) -> tuple[bool, str]:
    """Holds a rate against the median of the last ones of the same setting that no foreign load had slowed down.

    Returns:
        Whether it is at least that part of the median, and in words what was compared with what.
    """
    alike = [each for each in earlier if setting(each) == setting(result)]
    alone = [each for each in alike if not each["load"]["foreign"]][-COMPARED:]
    n_loaded = sum(each["load"]["foreign"] for each in alike)
    left_out = f"; {n_loaded} under foreign load left out" if n_loaded else ""
    busy = f", while {in_words(result['load'])}" if result["load"]["foreign"] else ""
    told = f"decodes {rate(result):.2f} tokens/s{busy}"
    if not alone:
        return (
            True,
            f"{told}. That is not checked, because no measurement of this setting can be compared with{left_out}",
        )
    from statistics import median  # noqa: PLC0415 - late, because a look at a host need not wait for it

    before = median(map(rate, alone))
    days = sorted({time.strftime("%Y-%m-%d", time.gmtime(each["measured_unix_s"])) for each in alone})
    which = f"of {days[0]}" if len(days) == 1 else f"of {days[0]} to {days[-1]}"
    measured = f"the last measurement ({which}{left_out})" if len(alone) == 1 else ""
    measured = measured or f"the median of {len(alone)} measurements ({which}{left_out})"
    told = f"{told} where {measured} is {before:.2f}"
    if rate(result) >= at_least * before:
        return True, told
    return False, f"{told}; at least {at_least * 100:.0f} % of that is wanted"
