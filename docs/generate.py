"""Writes the reference pages of docs/ from what they describe: `make docs`. A test fails when a page is out of date.

- `docs/cli.md` from the commands of r1prov/cli
- `docs/cards.md`, below its marker, from what `make test-gpu` has kept in tests/gpu/results
- `docs/containers.md`, below its marker, from the list of settings that no keeper of a unit obeys
- `docs/roles.md` from the roles' argument_specs and defaults
- `docs/site.md`, below its marker, from the models in r1prov/site and r1prov/machines
- `docs/trouble.md`, below its marker, from the exit codes in r1prov/common/errors.py
"""

from __future__ import annotations

import ast
import importlib.util
import inspect
import json
import re
import sys
import textwrap
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from pydantic import BaseModel

from r1prov.cli.verbs import VERBS, command
from r1prov.common.documents import Keys
from r1prov.common.errors import EXIT_CODES
from r1prov.machines.profile import Profile
from r1prov.site import SiteFile

if TYPE_CHECKING:
    from collections.abc import Iterator

DOCS = Path(__file__).resolve().parent
ROLES = DOCS.parent / "roles"
UNIT_FILE = ROLES / "service/files/r1prov-units/supervised/unit_file.py"
RESULTS = DOCS.parent / "tests/gpu/results"
MARKER = "<!-- generated below: make docs -->\n"
CLI_HEAD = """\
# Commands

This page lists every command of `r1prov` with its arguments and options. `r1prov COMMAND --help` says the same.

Generated from `r1prov/cli`: `make docs`.
"""
ROLES_HEAD = """\
# Roles

This page lists every role of the collection `r1.prov` and all its variables.

Generated from `roles/*/meta/argument_specs.yml`: `make docs`.
"""


def pages() -> dict[Path, str]:
    """The whole text of every generated page, by its path."""
    return {
        DOCS / "cards.md": _below(DOCS / "cards.md", _cards(RESULTS)),
        DOCS / "cli.md": _cli(),
        DOCS / "containers.md": _below(DOCS / "containers.md", _lost(UNIT_FILE)),
        DOCS / "roles.md": _roles(),
        DOCS / "site.md": _below(DOCS / "site.md", _keys("`r1prov.yml`", SiteFile) + _keys("A profile", Profile)),
        DOCS / "trouble.md": _below(DOCS / "trouble.md", _exit_codes()),
    }


def _below(page: Path, text: str) -> str:
    return page.read_text().split(MARKER)[0] + MARKER + text


def _exit_codes() -> str:
    rows = "".join(f"| {code.value} | {meaning} |\n" for code, meaning in EXIT_CODES.items())
    return f"\n| exit code | meaning |\n|---|---|\n{rows}"


def _lost(unit_file: Path) -> str:
    """What a service lacks where no systemd runs it, with the settings by which systemd would give it."""
    spec = importlib.util.spec_from_file_location(unit_file.stem, unit_file)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # Its dataclasses look themselves up there.
    spec.loader.exec_module(module)
    rows = "".join(
        f"| {what} | {', '.join(f'`{key}`' for key in sorted(keys.split()))} |\n" for what, keys in module.LOST.items()
    )
    return f"\n| what is so without systemd | settings of our units that have no effect there |\n|---|---|\n{rows}"


def _cards(results: Path) -> str:
    """A row for each card and driver whose results are kept, a folder for each machine."""
    rows = set()
    for path in sorted(results.glob("*/cards.json")):
        build_path = path.with_name("build.json")
        build = json.loads(build_path.read_text()) if build_path.exists() else {"failed": "not tried"}
        said = "the engine builds, and lists the cards" if not build["failed"] else build["failed"].splitlines()[0]
        for card in json.loads(path.read_text()).get("cards", []):
            memory = f"{card['memory_bytes'] >> 20:,} MiB" if card["memory_bytes"] else "not said"
            rows.add(f"| {card['name']} | {card['compute_capability']} | {card['driver']} | {memory} | {said} |\n")
    if not rows:
        return "\nNo result is kept yet: nobody has run `make test-gpu` on a machine with a card.\n"
    table = "\n| card | compute capability | driver | memory | build |\n|---|---|---|---|---|\n" + "".join(sorted(rows))
    return table + _placed(results) + _restricted(results)


PLACED_HEAD = """
## Memory and rates

`of plan` is the share of the planned weights, cache and compute buffer that the engine takes, on the card where it differs most.
`CUDA` is what CUDA takes of a card by itself, in MiB. Rates are tokens/s of a prompt and of decoding, for one user.

| cards, driver | model | mode | of plan | CUDA | empty slot | filled slot |
|---|---|---|---|---|---|---|
"""


def _placed(results: Path) -> str:
    """A row for each mode of each model that was measured, then what makes these figures differ from those of R1."""
    rows, notes = [], set()
    for result in _results(results, ("whole", "hybrid", "cut", "mixed", "forms")):
        card, model = result["cards"][0], result["model"]
        whose = f"{len(result['cards'])} x {card['name']}, {card['driver']}"
        what = f"{model['quant']}, {model['layers']} layers, {model['weights']}"
        notes |= {f"- {what}: {sentence}\n" for sentence in result["degenerate"]}
        for mode in result["modes"]:
            why = mode["left_out"] or mode["failed"].partition("\n")[0]
            shares = " / ".join(f"{share:.1%}" for share in mode.get("of_plan", {}).values()) or "-"
            cuda = ", ".join(f"{n_bytes >> 20:,}" for n_bytes in mode.get("cuda_bytes", [])) or "-"
            empty, filled = (_rate(rate) for rate in (*mode.get("rates", []), None, None)[:2])
            rows.append(f"| {whose} | {what} | {mode['mode']} | {why or shares} | {cuda} | {empty} | {filled} |\n")
    return PLACED_HEAD + "".join(rows) + "\n" + "".join(sorted(notes)) if rows else ""


def _rate(rate: dict[str, Any] | None) -> str:
    if not rate:
        return "-"
    depth = f" at {rate['depth_tokens']:,}" if rate["depth_tokens"] else ""
    return f"{rate['prompt_tokens_per_second']:,.1f} / {rate['decode_tokens_per_second']:,.1f}{depth}"


def _restricted(results: Path) -> str:
    """A row for each machine on which the engine ran under the restrictions of its unit."""
    rows = [
        f"| {result['cards'][0]['name']}, {result['cards'][0]['driver']} | {result['by']} | {', '.join(result['tried'])}"
        f" | {', '.join(result['untried']) or '-'} | {result['rates']['decode']:,.1f} of {result['rates_without']['decode']:,.1f} |\n"
        for result in _results(results, ("unit",))
    ]
    head = "\n## The unit's restrictions\n\n| card | by | tried | not tried | decode rate with and without |\n|---|---|---|---|---|\n"
    return head + "".join(rows) if rows else ""


def _results(results: Path, pieces: tuple[str, ...]) -> list[dict[str, Any]]:
    """What these pieces have measured on machines with cards."""
    found = [json.loads(path.read_text()) for piece in pieces for path in sorted(results.glob(f"*/{piece}.json"))]
    return [result for result in found if result.get("cards") and ("modes" in result or "tried" in result)]


def _cli() -> str:
    parts = [CLI_HEAD]
    for verb in VERBS:
        found = command(verb)
        parts.append(_command(f"r1prov {verb}", found))
        parts += [_command(f"r1prov {verb} {name}", each) for name, each in getattr(found, "commands", {}).items()]
    return "".join(parts)


def _command(title: str, found: Any) -> str:
    """One command: what it does, and a table of its arguments and options. `--help`, which all have, is left out."""
    rows = [_parameter(each) for each in found.params if "--help" not in each.opts]
    table = "\n| argument or option | default | what |\n|---|---|---|\n" + "".join(rows) if rows else ""
    return f"\n## {title}\n\n{(found.help or '').strip()}\n{table}"


def _parameter(parameter: Any) -> str:
    is_option = parameter.opts[0].startswith("-")
    names = parameter.opts if is_option else [(parameter.metavar or parameter.name).upper()]
    default = "required" if parameter.required else ""
    if not parameter.required and parameter.default not in (None, "", False, 0):
        default = f"`{parameter.default}`"
    shown = ", ".join(f"`{name}`" for name in names)
    return f"| {shown} | {default} | {(parameter.help or '').replace('|', chr(92) + '|')} |\n"


def _roles() -> str:
    parts = [ROLES_HEAD]
    for role in sorted(path for path in ROLES.iterdir() if path.is_dir()):
        specs = yaml.safe_load((role / "meta" / "argument_specs.yml").read_text())["argument_specs"]
        for entry, spec in specs.items():
            title = role.name if entry == "main" else f"{role.name}: tasks_from {entry}"
            parts.append(f"\n## {title}\n\n{spec['short_description']}\n{_paragraphs(spec.get('description'))}")
            options = list(_options(spec.get("options", {})))
            if options:
                parts.append("\n| variable | type | default | what |\n|---|---|---|---|\n" + "".join(options))
    return "".join(parts)


def _options(options: dict[str, Any], prefix: str = "") -> Iterator[str]:
    for name, option in options.items():
        default = "required" if option.get("required") else f"`{json.dumps(option.get('default'))}`"
        if not option.get("required") and "default" not in option:
            default = ""
        what = " ".join(_texts(option.get("description"))).replace("|", "\\|")
        yield f"| `{prefix}{name}` | {option.get('type', 'str')} | {default} | {what} |\n"
        yield from _options(option.get("options", {}), f"{prefix}{name}.")


def _paragraphs(description: Any) -> str:
    return "".join(f"\n{text}\n" for text in _texts(description))


def _texts(description: Any) -> list[str]:
    """Ansible allows a text or a list of texts, with C(code) and I(options) in it."""
    texts = description if isinstance(description, list) else [description] if description else []
    return [re.sub(r"[CI]\((.*?)\)", r"`\1`", text) for text in texts]


def _keys(title: str, model: type[BaseModel]) -> str:
    rows = "".join(_rows(model, ""))
    return f"\n## {title}\n\n| key | default | what |\n|---|---|---|\n{rows}"


def _docstrings(model: type[BaseModel]) -> dict[str, str]:
    """What stands below the keys of a model. pydantic would read it, too, each time that somebody calls r1prov."""
    found = _docstrings(model.__base__) if model.__base__ not in (Keys, BaseModel) else {}
    body = ast.parse(textwrap.dedent(inspect.getsource(model))).body[0].body
    for key, below in pairwise(body):
        if isinstance(key, ast.AnnAssign) and isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant):
            found[key.target.id] = inspect.cleandoc(below.value.value)
    return found


def _rows(model: type[BaseModel], prefix: str) -> Iterator[str]:
    docstrings = _docstrings(model)
    for name, field in model.model_fields.items():
        inner = [m for m in _models(field.annotation) if m is not model]
        default = "required" if field.is_required() else _shown(field.get_default(call_default_factory=True))
        told = (docstrings.get(name) or (inner[0].__doc__ if inner else "") or "").strip()
        lead = " ".join(told.split("\n\n")[0].split())
        yield f"| `{prefix}{name}` | {default} | {lead} |\n"
        for part in inner:
            tag = part.model_fields.get("type")
            label = f"{prefix}{name}."
            if len(inner) > 1 and tag is not None:
                yield f"| `{label}type: {tag.annotation.__args__[0]}` | | {(part.__doc__ or '').strip()} |\n"
            yield from (row for row in _rows(part, label) if len(inner) == 1 or f"`{label}type`" not in row)


def _shown(value: Any) -> str:
    if value is None or value in ("", (), []):
        return ""
    if isinstance(value, BaseModel):
        return ""
    if isinstance(value, tuple):
        return ", ".join(f"`{getattr(item, 'type', item)}`" for item in value)
    return f"`{value}`"


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in getattr(annotation, "__args__", ()):
        yield from _models(argument)


if __name__ == "__main__":
    for page, text in pages().items():
        if not page.exists() or page.read_text() != text:
            page.write_text(text)
            sys.stderr.write(f"wrote {page.relative_to(DOCS.parent)}\n")
