"""`r1prov weights`: a model's files, on the hosts and by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from r1prov import output
from r1prov.cli import options, prune, verify, weights_status
from r1prov.cli.command import App
from r1prov.common.errors import Exit
from r1prov.models import convert as weights
from r1prov.models import perplexity
from r1prov.models.perplexity import PROGRAM, Run

app = App(
    no_args_is_help=True,
    help="A model's files: look at them on the hosts, verify and prune them; by hand, bring them into MLA form and compare two of them.",
)
app.command()(weights_status.status)
app.command()(verify.verify)
app.command()(prune.prune)

Source = Annotated[Path, typer.Argument(metavar="IN", help="A GGUF file, or any shard of a set.")]
Target = Annotated[Path, typer.Argument(metavar="OUT", help="The new file.")]
KeyType = Annotated[
    Literal["q8_0", "f16"],
    typer.Option("--k-b", case_sensitive=False, help="The type of `attn_k_b`, which is made anew."),
]
First = Annotated[Path, typer.Argument(metavar="A", help="A model: a GGUF file, or any shard of a set.")]
Second = Annotated[Path, typer.Argument(metavar="B", help="Another form of it.")]
Arguments = Annotated[
    list[str] | None, typer.Argument(help="llama-perplexity's, after `--`, e.g. where the model lies.")
]
Engine = Annotated[Path, typer.Option(metavar="FOLDER", help="Where llama-perplexity is.")]
Text = Annotated[Path | None, typer.Option(metavar="FILE", help="Instead of the reference of Python's language.")]
Json = options.Json
Chunks = Annotated[
    int, typer.Option(min=1, help="How much of the text: so many times 512 tokens, half of them judged.")
]


@app.command()
def convert(source: Source, target: Target, *, key_type: KeyType = "q8_0") -> None:
    """Write a model with legacy attention (deepseek2) in MLA form: a cache 70 times smaller, and flash attention on GPUs.

    Example: `r1prov weights convert DeepSeek-R1-UD-IQ1_S-00001-of-00003.gguf R1-mla.gguf`
    """
    try:
        with output.Meter(f"writing {target.name}") as meter:
            written = weights.convert(source, target, key_type.upper(), meter.update)
    except KeyboardInterrupt:
        output.say(f"\nStopped. Nothing was left of {target}.", "yellow")
        raise typer.Exit(Exit.INTERRUPTED) from None
    if written:
        output.say(f"{written.path}: {written.n_bytes:,} bytes, every tensor held against its source")
        output.write(f"{written.sha256}  {written.path}\n")
    else:
        output.say(f"{source} is in MLA form already: nothing to do")


@app.command()
def compare(
    first: First,
    second: Second,
    arguments: Arguments = None,
    *,
    engine: Engine,
    text: Text = None,
    chunks: Chunks = 16,
    json: Json = False,
) -> None:
    """Say how far apart two models are, by what the engine expects of each next token; beside it, flash attention on and off of one.

    Example: `r1prov weights compare R1-00001-of-00003.gguf R1-mla.gguf --engine /opt/r1prov/llama.cpp/current/bin -- --n-gpu-layers 62`
    """
    words = perplexity.prose(text)
    plain, flash = (Run(second, (*(arguments or ()), "--flash-attn", state)) for state in ("off", "on"))
    base = Run(first, plain.arguments)
    labels = {base: first.name, plain: second.name, flash: f"{second.name} with flash attention"}

    def watch(run: Run) -> output.Meter:
        place = list(labels).index(run) + 1
        output.say(f"[{place}/{len(labels)}] {PROGRAM} loads and judges {labels[run]}")
        return output.Meter(f"chunks of {labels[run]}", "steps")

    forms, noise = perplexity.differences(engine, [(base, plain), (plain, flash)], words, chunks, watch)
    found = {f"{second.name} instead of {first.name}": forms, f"flash attention in {second.name}": noise}
    if json:
        output.data({"differences": [{"what": what, **vars(difference)} for what, difference in found.items()]})
        return
    rows = [
        (
            what,
            f"{one.kl_divergence:.2e} ± {one.uncertainty:.0e}",
            f"{one.median:.2e}",
            f"{one.same_top:.2%}",
            f"{one.perplexity:.4f}, was {one.base_perplexity:.4f}",
        )
        for what, one in found.items()
    ]
    output.table(("", "KL divergence>", "median>", "same token expected most>", "perplexity>"), rows)
