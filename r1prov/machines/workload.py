"""Workloads: what people ask of a server in a day, as shares of exchanges. The plan says what each of them waits for."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import BeforeValidator, Field

from r1prov.common import documents
from r1prov.common.documents import Keys, OneLine
from r1prov.common.errors import Problem, SiteError

if TYPE_CHECKING:
    from collections.abc import Callable

SAID = 400
"""The tokens of an answer that are no thought: as many as the answers in Azure's trace of conversations have (docs/workloads.md)."""


class Exchange(Keys):
    """A question and its answer, in tokens."""

    share: float = Field(default=1, gt=0, le=1e12, strict=True, allow_inf_nan=False)
    """How often it happens, compared with the other exchanges. The shares need not come to 1."""
    prompt: int = Field(ge=1, strict=True)
    """The tokens of the question that are new. In a further question they repeat what a model that thinks has said last."""
    cached: int = Field(default=0, ge=0, strict=True)
    """The tokens before them that lie in the cache of the slot already."""
    answer: int = Field(ge=1, strict=True)
    """The tokens of the answer, thinking included."""
    at_once: int = Field(default=1, ge=1, le=1024, strict=True)
    """The number of people who ask this at the same moment."""

    @property
    def tokens(self) -> int:
        """The tokens of a slot that it fills."""
        return self.prompt + self.cached + self.answer


class Workload(Keys):
    """The exchanges of a day."""

    page: ClassVar[str] = "workloads.md"
    description: OneLine = "own figures"
    """The words for it that `r1prov plan` shows."""
    exchanges: tuple[Exchange, ...] = Field(min_length=1)
    """The exchanges."""

    @property
    def tokens(self) -> int:
        """The tokens of a slot that its longest exchange fills."""
        return max(exchange.tokens for exchange in self.exchanges)

    @property
    def people(self) -> int:
        """The most people who ask at once."""
        return max(exchange.at_once for exchange in self.exchanges)

    def weight(self, exchange: Exchange) -> float:
        """The share of an exchange, where all shares come to 1."""
        return exchange.share / sum(other.share for other in self.exchanges)


def _further(*, share: float, cached: int, question: int, answer: int, at_once: int = 1) -> Exchange:
    """A further question of a conversation with R1, behind the last prompt.

    The chat template leaves the thoughts out of the last answer. What was said in it follows other tokens then, and is computed anew.
    """
    return Exchange(share=share, cached=cached, prompt=SAID + question, answer=answer, at_once=at_once)


# docs/workloads.md says where these figures come from.
CHAT = Workload(
    description="chat: one person talks, and reads each answer first",
    exchanges=(
        _further(share=6, cached=1600, question=100, answer=1000),
        Exchange(share=3, prompt=1000, answer=1000),
        Exchange(share=1, prompt=4000, answer=1000),
    ),
)
DOCUMENTS = Workload(
    description="documents: a person asks about a page of documents, then once more",
    exchanges=(
        Exchange(share=2, prompt=8000, answer=1500),
        _further(share=1, cached=8000, question=200, answer=1500),
    ),
)
THINKING = Workload(
    description="thinking: short questions that need long thought",
    exchanges=(
        Exchange(share=2, prompt=300, answer=5000),
        Exchange(share=1, prompt=300, answer=12_000),
    ),
)
TEAM = Workload(
    description="team: sixteen people at once, some with documents",
    exchanges=(
        _further(share=7, cached=1600, question=300, answer=1000, at_once=16),
        Exchange(share=2, prompt=1000, answer=1000, at_once=16),
        Exchange(share=1, prompt=8000, answer=1500, at_once=4),
    ),
)
WORKLOADS = {"chat": CHAT, "documents": DOCUMENTS, "thinking": THINKING, "team": TEAM}


def named(name: str) -> Workload:
    """A workload that comes with r1prov.

    Raises:
        SiteError: There is none of this name. The remedy shows similar names.
    """
    if name not in WORKLOADS:
        near = difflib.get_close_matches(name, WORKLOADS, n=3, cutoff=0.4)
        hint = f"did you mean {' or '.join(near)}?" if near else f"there are: {', '.join(WORKLOADS)}."
        raise SiteError(
            Problem("workload", f"there is no workload `{name}`", f"{hint} Or name a YAML file of your own.")
        )
    return WORKLOADS[name]


def load_workload(name_or_path: str) -> Workload:
    """A workload by name, or the operator's own from a YAML file.

    Raises:
        SiteError: The name is unknown, the file is unreadable, or its content is wrong.
    """
    if name_or_path not in WORKLOADS and documents.names_file(name_or_path):
        return documents.load(Path(name_or_path), Workload)
    return named(name_or_path)


def _by_name(value: Any) -> Any:
    if isinstance(value, str) and value not in WORKLOADS:
        raise ValueError(f"there is no workload `{value}`: write {', '.join(WORKLOADS)}, or exchanges of your own")
    return WORKLOADS[value] if isinstance(value, str) else value


NamedWorkload = Annotated[Workload, BeforeValidator(_by_name, json_schema_input_type=str | Workload)]
"""A workload in a file: the name of one that comes with r1prov, or its exchanges."""


def check_length(
    workload: Workload,
    context: int,
    most: int,
    *,
    slots: int | None = None,
    fits: Callable[[int], bool] = lambda _: True,
    where: str = "on the machine",
) -> None:
    """Check that no exchange is longer than the context of a slot.

    Args:
        workload: The exchanges.
        context: The tokens of a slot.
        most: The tokens for which the model was trained.
        slots: The slots that share the context of llama-server's own --ctx-size; None where the option of r1prov is meant, for each slot.
        fits: Whether slots of so many tokens would fit. Where they would not, they are not proposed.
        where: On what slots of so many tokens would not fit then.

    Raises:
        SiteError: An exchange is. The error is about the longest one, for whoever has room for it has room for the others.
    """

    def raised(tokens: int) -> str:
        if slots is None:
            return f"--ctx-size (context_per_slot) to {tokens:,}"
        return f"--ctx-size to {tokens * slots:,}" + (f", for {slots} slots" if slots > 1 else "")

    exchange = max(workload.exchanges, key=lambda each: each.tokens)
    if exchange.tokens <= context:
        return
    if exchange.tokens > most:
        remedy = f"name a workload with exchanges of {most:,} tokens at most: the model was trained for no more"
    elif fits(exchange.tokens):
        remedy = f"raise {raised(exchange.tokens)}, or name a workload with shorter exchanges"
    else:
        remedy = (
            f"name a workload with shorter exchanges: {exchange.tokens:,} tokens for each slot would not fit {where}"
        )
    raise SiteError(
        Problem(
            "workload",
            f"an exchange of {exchange.cached:,} + {exchange.prompt:,} + {exchange.answer:,} tokens"
            f" does not fit in a slot of {context:,}",
            remedy,
        )
    )


def shortened(workload: Workload, context: int) -> Workload:
    """The workload, in which each exchange that is longer than the context of a slot is scaled down to it."""
    exchanges = tuple(
        exchange if exchange.tokens <= context else _scaled(exchange, context / exchange.tokens)
        for exchange in workload.exchanges
    )
    return workload.model_copy(update={"exchanges": exchanges})


def _scaled(exchange: Exchange, factor: float) -> Exchange:
    lengths = {"prompt": exchange.prompt, "cached": exchange.cached, "answer": exchange.answer}
    scaled = {key: int(length * factor) for key, length in lengths.items()}
    return exchange.model_copy(update=scaled | {"prompt": max(scaled["prompt"], 1), "answer": max(scaled["answer"], 1)})
