"""Maps each model to the builder of its compute graph."""

from __future__ import annotations

from typing import TYPE_CHECKING

from r1prov.offload.engine.builder import Batch, Builder
from r1prov.offload.engine.deepseek2 import DeepSeek2
from r1prov.offload.engine.llama import Llama
from r1prov.offload.engine.presumed import Presumed, missing

if TYPE_CHECKING:
    from r1prov.models.model import Model

BUILDERS: dict[str, type[Builder]] = {
    "deepseek2": DeepSeek2,
    **dict.fromkeys(("llama", "qwen2", "qwen3", "qwen3moe"), Llama),
}
"""The architectures whose graph is known."""


def known(model: Model) -> bool:
    """Whether r1prov knows the engine's graph of the model, so that its memory figures are exact.

    It does if the architecture is known, and the graph reads every kind of tensor in the file.
    """
    builder = BUILDERS.get(model.architecture)
    return builder is not None and model.kinds <= builder.READS and builder.shaped(model)


def builder_of(model: Model) -> type[Builder]:
    """The builder of the model's graph; `Presumed` for a graph that is not known."""
    return BUILDERS[model.architecture] if known(model) else Presumed


def check(model: Model) -> None:
    """Checks that a graph of the model can be built.

    Raises:
        ValueError: No graph can be presumed from its tensors, or a tensor is missing. The message is one sentence.
    """
    builder = builder_of(model)
    unclear = missing(model) if builder is Presumed else None
    if not unclear:
        try:
            builder(model, _ONE_TOKEN, {}, flash_on_cards=True).build()
        except KeyError as error:
            unclear = f"it has no tensor `{error.args[0]}`"
    if unclear:
        exact = ", ".join(BUILDERS)
        raise ValueError(
            f"no graph of `{model.architecture}` can be drawn: {unclear} (known are {exact}, and what is built like them)"
        )


_ONE_TOKEN = Batch(
    tokens=1, outputs=1, cells=256, streams=1, type_k="F16", type_v="F16", flash=True, transposed_v=False
)
