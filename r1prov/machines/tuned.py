"""What a host was tuned to, and of what that was measured. A result holds as long as hardware, engine, model and plan stay the same."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict

from r1prov.machines.workload import Workload

AGAIN = "run `r1prov tune`"

RAM_TOLERANCE = 0.05
"""Kernels of different versions count the same RAM differently, by less than this share."""


class Hardware(BaseModel):
    """The hardware of a host, as far as its rates depend on it.

    Attributes:
        cpu: the model of the CPU.
        cores: physical cores.
        threads: hardware threads that the service may use.
        ram: bytes.
        cards: name and memory (bytes) of each GPU.
    """

    model_config = ConfigDict(frozen=True)

    cpu: str
    cores: int
    threads: int
    ram: int
    cards: tuple[tuple[str, int], ...]

    @classmethod
    def of(cls, facts: dict[str, Any]) -> Hardware:
        """The hardware in the facts that plugins/module_utils/host_probe.py finds."""
        return cls(
            cpu=facts["cpu"]["model"],
            cores=facts["cpu"]["cores"],
            threads=facts["cpu"]["usable_threads"],
            ram=facts["ram"]["total_bytes"],
            cards=tuple((card["name"], card["memory_bytes"]) for card in facts["gpu"]["cards"]),
        )

    def like(self, other: Hardware) -> bool:
        """Whether both are the same hardware. RAM may differ by what kernels count differently."""
        return self == other.model_copy(update={"ram": self.ram}) and (
            abs(self.ram - other.ram) <= RAM_TOLERANCE * max(self.ram, other.ram)
        )


class Subject(BaseModel):
    """What was tuned. When any part of it changes, the result says nothing any more.

    Attributes:
        hardware: of the host.
        engine: version, backend and source of llama.cpp.
        model: the sha256 of each of its published files.
        plan: the arguments of llama-server that the plan itself gives.
        workload: what people ask, by which settings were judged; None in what versions kept that judged by a full slot.
    """

    model_config = ConfigDict(frozen=True)

    hardware: Hardware
    engine: tuple[str, ...]
    model: tuple[str, ...]
    plan: tuple[str, ...]
    workload: Workload | None = None


class Measurement(BaseModel):
    """What was measured of one setting.

    Attributes:
        chosen: the label of the choice in each dimension.
        exchange_s: the mean seconds of an exchange of the workload, by which settings are judged: the median of the repetitions.
        first_token_s: the mean seconds until its answer begins, which count too where settings differ in their slots.
        prompt_tokens_per_second: of all prompts that were measured, the median.
        decode_tokens_per_second: of all answers that were measured, the median.
        points: the seconds behind these rates, as roles/measure/files/r1prov-measure/measuring/settings.py describes them.
        seconds: how long the measurement took.
        failed: why there are no rates; empty where there are.
    """

    chosen: dict[str, str]
    exchange_s: float = 0
    first_token_s: float = 0
    prompt_tokens_per_second: float = 0
    decode_tokens_per_second: float = 0
    points: tuple[dict[str, Any], ...] = ()
    seconds: float
    failed: str = ""


class Tuned(BaseModel):
    """The result of tuning a host.

    Attributes:
        subject: what was tuned.
        chosen: the label of the choice that was kept in each dimension.
        arguments: the arguments of llama-server for these choices.
        measured: every setting that was measured, the plan's own first.
        untried: labels of settings for which no time was left.
        reason: why the choices were kept.
        ended: when, ISO 8601 in UTC.
        served: whether the host has been brought to serve with them.
    """

    subject: Subject
    chosen: dict[str, str]
    arguments: tuple[str, ...]
    measured: tuple[Measurement, ...]
    untried: tuple[str, ...] = ()
    reason: str
    ended: str
    served: bool = False

    def lapsed(self, now: Subject) -> str:
        """What has changed since, in the words of `tuned for ...`; empty where it still holds."""
        was = self.subject
        if not was.hardware.like(now.hardware):
            return "other hardware"
        if was.engine != now.engine:
            return "another engine"
        if was.model != now.model:
            return "another model"
        if was.plan != now.plan:
            return "another plan"
        if not was.workload:
            return "a full slot, not for a workload"
        return "another workload" if was.workload != now.workload else ""

    @property
    def what(self) -> str:
        """What differs from the plan, in a few words."""
        other = [f"{name} {label}" for name, label in self.chosen.items() if label != self.measured[0].chosen[name]]
        return ", ".join(other) or "the plan's own setting"


def in_words(tuned: Tuned | None, lapsed: str = "") -> str:
    """Whether a host is tuned, in a few words.

    Args:
        tuned: what the host was tuned to, if it was.
        lapsed: what has changed since; empty where the result still holds.
    """
    if not tuned:
        return f"not tuned: {AGAIN}"
    return f"tuned for {lapsed}: {AGAIN}" if lapsed else f"tuned: {tuned.what} ({tuned.reason})"


def rows(tuned: Tuned) -> list[tuple[str, str, str, str, str, str]]:
    """A row for each setting: its name, what people wait for, prompt and decode rates (tokens/s), and what became of it.

    They wait for the first token and for the end of an exchange, in seconds.
    """
    own = tuned.measured[0].chosen
    table = []
    for measurement in tuned.measured:
        label = ", ".join(f"{name} {choice}" for name, choice in measurement.chosen.items() if choice != own[name])
        outcome = "kept" if measurement.chosen == tuned.chosen else measurement.failed
        waits = measurement.first_token_s, measurement.exchange_s
        rates = measurement.prompt_tokens_per_second, measurement.decode_tokens_per_second
        first, end, prompt, decode = ("" if measurement.failed else f"{number:.2f}" for number in (*waits, *rates))
        table.append((label or "the plan's own", first, end, prompt, decode, outcome))
    return [*table, *((label, "", "", "", "", "no time was left for it") for label in tuned.untried)]
