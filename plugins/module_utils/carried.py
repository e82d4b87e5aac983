"""The modules of ours that a program takes along to a host, because it imports them. Only the controller asks."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

FOLDER = Path(__file__).parent
PACKAGE = "ansible_collections.r1.prov.plugins.module_utils"
_ALONE = """\
import sys, types
for name, text in {modules!r}.items():
    module = sys.modules[name] = types.ModuleType(name)
    exec(compile(text, name, "exec"), vars(module))
exec(compile({program!r}, "program", "exec"))
"""


def imported(programs: Iterable[str]) -> dict[str, str]:
    """The modules that the texts of programs import, and those that these import.

    Returns:
        The text of each by its name. It stands behind those that it imports itself.
    """
    found: dict[str, str] = {}

    def take(text: str) -> None:
        for name in _names(ast.parse(text)) if PACKAGE in text else ():
            if name not in found:
                content = (FOLDER / f"{name}.py").read_text(encoding="utf-8")
                take(content)
                found[name] = content

    for program in programs:
        take(program)
    return found


def installed(folder: Path) -> dict[str, str]:
    """The texts of all files of a program that is a folder, by their places in it, and of the modules that go along with them."""
    own = {str(path.relative_to(folder)): path.read_text(encoding="utf-8") for path in sorted(folder.rglob("*.py"))}
    place = PACKAGE.replace(".", "/")
    modules = {f"{place}/{name}.py": text for name, text in imported(own.values()).items()}
    # Without this file a collection that is installed on the host would be found in its place.
    first = {f"{PACKAGE.partition('.')[0]}/__init__.py": ""} if modules else {}
    return {**own, **first, **modules}


def alone(program: str) -> str:
    """The text of a program as one that needs nothing but Python's own library, and can be sent so."""
    modules = {PACKAGE: "", **{f"{PACKAGE}.{name}": text for name, text in imported([program]).items()}}
    return _ALONE.format(modules=modules, program=program)


def _names(node: ast.AST) -> Iterator[str]:
    """The modules that are imported when a program runs, also those whose full names it has as a text for later."""
    if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
        return
    if isinstance(node, ast.ImportFrom) and node.module == PACKAGE:
        yield from (each.name for each in node.names)
    full = node.module if isinstance(node, ast.ImportFrom) else node.value if isinstance(node, ast.Constant) else None
    if isinstance(full, str) and full.startswith(f"{PACKAGE}."):
        yield full.removeprefix(f"{PACKAGE}.")
    for each in ast.iter_child_nodes(node):
        yield from _names(each)
