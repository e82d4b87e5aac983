"""The servers of `r1prov bench --modes` on a machine of a profile, and the arguments by which llama-fit-params knows them."""

from __future__ import annotations

from r1prov.machines.profile import BEST_ON_GPUS, load_profile
from r1prov.models import catalogue, latent, layout
from r1prov.offload.experiment import Server, Subject
from r1prov.offload.modes import LEGACY, OLLAMA
from r1prov.offload.plan import DYNAMIC_QUANTS, arguments, best_on_gpus, plan

SERVERS_ONLY = {"--cache-ram": 1, "--no-kv-unified": 0, "--fit": 1}
"""Arguments that llama-fit-params does not take, or that `ask_memory` gives it; with the number of their values."""


def subject(profile: str) -> Subject:
    """R1 on a machine of a profile that has Ollama, as the profile says."""
    found = load_profile(profile)
    if found.serving.quant == BEST_ON_GPUS:
        best = best_on_gpus([catalogue.quant(name) for name in DYNAMIC_QUANTS], found.machine, found.serving)
    else:
        best = plan(catalogue.quant(found.serving.quant), found.machine, found.serving)
    published = layout.model(best.quant)
    return Subject(
        model=latent.served(published, found.serving.attention),
        published=published,
        published_bytes=catalogue.quant(best.quant).bytes,
        plan=best,
        arguments=best.arguments,
        machine=found.machine,
        serving=found.serving,
        without_ollama="",
    )


def asked(server: Server, of: Subject) -> tuple[bool, tuple[str, ...]]:
    """Whether a server has the model in MLA form, and the arguments that come to its memory. Ollama tells the engine in a file."""
    words = server.comes_to or server.arguments
    if server.mode == OLLAMA:
        words = (*arguments(of.plan.ollama), "--batch-size", str(of.plan.ollama.batch))
    left, kept = iter(words), []
    for word in left:
        if word in SERVERS_ONLY:
            for _ in range(SERVERS_ONLY[word]):
                next(left)
        else:
            kept.append(word)
    return server.mode != LEGACY, tuple(kept)
