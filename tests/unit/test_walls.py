"""Tests that the package consists of its wings, and that a wing imports only the wings before it."""

import ast
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import r1prov

PACKAGE = Path(r1prov.__file__).parent
ROOT = PACKAGE.parent

FLOW = (
    "common",
    "models",
    "machines",
    "site",
    "offload",
    "decision",
    "inventory",
    "hosts",
    "runs",
    "output",
    "cli",
)
"""The wings in the order of the data flow. Each may import only those before it."""

APART = {"lab": {"common"}}
"""The wings outside the flow, with the wings they may import. Only the command line calls throwaway hosts."""

OWNERS = {
    "rich": {"output"},
    "typer": {"cli"},
    "ansible_runner": {"runs"},
    "ansible": set(),
    "paramiko": {"hosts"},
    "jinja2": {"inventory"},
    "httpx": {"common", "models", "site"},
    "subprocess": {"lab", "models", "site", "hosts"},
    "socket": {"lab", "hosts"},
}
"""The wings that may know a library. So a wing that says that it touches nothing has no way to touch anything."""

LATE = {"common/paths.py", "cli/verbs.py"}
"""The files that import by name, when a program runs: a module of the collection, and the module of a verb."""


def modules(package: Path = PACKAGE) -> dict[str, Path]:
    """The file of every module of the package, by its dotted name below the package."""
    found = {}
    for path in package.rglob("*.py"):
        if "on_host" in path.parts:  # these programs are sent to a host
            continue
        parts = path.relative_to(package).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports(path: Path, known: dict[str, Path], *, types: bool) -> Iterator[str]:
    """The modules that a file imports. Modules of the package come by their name below it, others by their full name.

    With `types`, the modules that are imported only for annotations are included.
    """
    tree = ast.parse(path.read_text())
    for_types = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if id(node) in for_types and not types:
            continue
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: a relative import hides the wing"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            own = name.removeprefix("r1prov.") if known and name.startswith("r1prov.") else ""
            if own:
                yield own if own in known else own.rpartition(".")[0]
            else:
                yield name


def wing(module: str) -> str:
    return module.partition(".")[0]


def against_the_flow(package: Path = PACKAGE) -> list[str]:
    known = modules(package)
    rooms = {wing(name) for name in known}
    wrong = []
    for name, path in sorted(known.items()):
        allowed = APART.get(wing(name)) or set(FLOW[: FLOW.index(wing(name))] if wing(name) in FLOW else ())
        for other in imports(path, known, types=True):
            calls_the_lab = (wing(name), wing(other)) == ("cli", "lab")
            if wing(other) in rooms - {wing(name), ""} and wing(other) not in allowed and not calls_the_lab:
                wrong.append(f"{name} imports {other}")
    return wrong


def test_twelve_rooms_at_most() -> None:
    rooms = {wing(name) for name in modules()} - {""}
    assert rooms == {*FLOW, *APART}
    assert len(rooms) <= 12


def test_each_wing_says_what_it_is_for() -> None:
    for name, path in modules().items():
        assert ast.get_docstring(ast.parse(path.read_text())), name


def test_no_import_goes_against_the_flow() -> None:
    assert against_the_flow() == []


def test_a_broken_wall_is_seen(tmp_path: Path) -> None:
    for folder, text in (("hosts", "from r1prov.runs import run"), ("runs", ""), ("models", "import r1prov.site.load")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "__init__.py").write_text("")
        (tmp_path / folder / "run.py").write_text(text + "\n")
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "load.py").write_text("from r1prov.models import run\n")
    assert against_the_flow(tmp_path) == ["hosts.run imports runs.run", "models.run imports site.load"]


def test_no_circle() -> None:
    known = modules()
    graph = {
        name: {other for other in imports(path, known, types=False) if other in known} - {name}
        for name, path in known.items()
    }
    try:
        order = [*TopologicalSorter(graph).static_order()]
    except CycleError as error:
        pytest.fail(f"a circle of imports: {' -> '.join(error.args[1])}")
    assert set(order) == set(known)


@pytest.mark.parametrize(("library", "owners"), OWNERS.items())
def test_few_wings_know_a_library(library: str, owners: set[str]) -> None:
    known = modules()
    users = {wing(name) for name, path in known.items() if library in map(wing, imports(path, known, types=True))}
    assert users == owners


def test_nothing_is_imported_behind_the_walls() -> None:
    late = {
        str(path.relative_to(PACKAGE))
        for path in modules().values()
        if any(word in path.read_text() for word in ("import_module", "__import__"))
    }
    assert late == LATE


def test_what_runs_on_hosts_does_not_know_the_package() -> None:
    programs = [
        *(ROOT / "plugins").rglob("*.py"),
        *ROOT.glob("roles/*/files/*.py"),
        *(PACKAGE / "hosts/on_host").glob("*.py"),
    ]
    assert len(programs) > 40
    for path in programs:
        assert not [name for name in imports(path, {}, types=True) if wing(name) == "r1prov"], path
