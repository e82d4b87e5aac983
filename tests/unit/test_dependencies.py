"""Tests that pyproject.toml declares every imported library, for users and developers, and that hosts need only Ansible's own one."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterable
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

from r1prov.hosts.first import OLDEST_PYTHON

ROOT = Path(__file__).parents[2]
DECLARED = tomllib.loads((ROOT / "pyproject.toml").read_text())
OURS = {"r1prov", "tests", "benchmarks", "ansible_collections"}
OURS |= {"living", "measuring", "mend", "supervised", "transfer", "verify", "watch_engine"}
DISTRIBUTIONS = packages_distributions()

ON_THE_CONTROLLER = ("r1prov", "plugins/action", "plugins/filter")
ITS_HELPERS = tuple(
    f"plugins/module_utils/{name}.py" for name in ("carried", "certificate", "password", "look_job", "steps")
)
"""The files of module_utils that only the controller runs."""
ON_HOSTS = ("plugins/modules", "plugins/module_utils", "r1prov/hosts/on_host", "r1prov/runs/on_host")
OF_ROLES = (
    "roles/liveness/files/r1prov-liveness",
    "roles/measure/files/r1prov-measure",
    "roles/service/files/r1prov-units",
    "roles/weights/files/r1prov-weights",
)
OF_THE_PAGE = ROOT / "roles/open_webui/files/account.py"
"""The chat page's own Python runs it, with what the page's requirements bring."""
FOR_DEVELOPERS = ("tests", "benchmarks", "docs", "roles")


def programs(*folders: str) -> list[Path]:
    """The Python programs below these folders, with or without the ending .py."""
    files = [path for folder in folders for path in (ROOT / folder).rglob("*") if path.is_file()]
    return [file for file in files if file.suffix == ".py" or _starts_python(file)]


def _starts_python(file: Path) -> bool:
    with file.open("rb") as stream:
        first = stream.readline()
    return first.startswith(b"#!") and b"python" in first


def imported(files: Iterable[Path]) -> dict[str, list[str]]:
    """The third-party modules that files import, by their full names, each with the files that import it."""
    found: dict[str, list[str]] = {}
    for file in files:
        for node in ast.walk(ast.parse(file.read_text())):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and not node.level:
                names = [node.module or ""]
            for name in names:
                top = name.partition(".")[0]
                beside = file.with_name(f"{top}.py").exists()
                if top not in sys.stdlib_module_names and top not in OURS and not beside:
                    found.setdefault(name, []).append(str(file.relative_to(ROOT)))
    return found


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def names(requirements: Iterable[str]) -> set[str]:
    return {normal(re.match(r"[\w.-]+", requirement)[0]) for requirement in requirements}


def undeclared(modules: dict[str, list[str]], declared: set[str]) -> dict[str, list[str]]:
    """The modules among these that no declared distribution contains."""
    return {module: files for module, files in modules.items() if not declared & brought_by(module)}


def brought_by(module: str) -> set[str]:
    """The installed distributions that contain a module, or the distribution of the same name where none is installed."""
    top = module.partition(".")[0]
    return {normal(name) for name in DISTRIBUTIONS.get(top, [top])}


def of_the_controller() -> dict[str, list[str]]:
    files = [file for file in programs(*ON_THE_CONTROLLER) if "on_host" not in file.parts]
    return imported([*files, *(ROOT / name for name in ITS_HELPERS)])


def test_what_the_controller_imports_is_declared() -> None:
    assert undeclared(of_the_controller(), names(DECLARED["project"]["dependencies"])) == {}


def test_what_is_declared_is_imported_by_the_controller() -> None:
    used = {name for module in of_the_controller() for name in brought_by(module)}
    assert names(DECLARED["project"]["dependencies"]) - used == set()


def test_what_developers_import_is_declared() -> None:
    groups = [requirement for group in DECLARED["dependency-groups"].values() for requirement in group]
    declared = names([*DECLARED["project"]["dependencies"], *groups])
    files = [file for file in programs(*FOR_DEVELOPERS) if file != OF_THE_PAGE]
    assert undeclared(imported(files), declared) == {}


def test_what_the_page_runs_imports_what_the_page_is_made_of() -> None:
    pins = re.findall(r"^[\w.-]+(?===)", (OF_THE_PAGE.parent / "requirements.txt").read_text(), re.MULTILINE)
    assert undeclared(imported([OF_THE_PAGE]), names(pins)) == {}


def test_hosts_need_nothing_but_numpy_beside_ansibles_own_library() -> None:
    files = [file for file in programs(*ON_HOSTS) if str(file.relative_to(ROOT)) not in ITS_HELPERS]
    others = {module for module in imported(files) if not module.startswith("ansible.module_utils.")}
    assert others == {"numpy"}


def test_programs_for_hosts_use_no_syntax_newer_than_the_oldest_python_there() -> None:
    files = [*programs(*ON_HOSTS, *OF_ROLES), *ROOT.glob("roles/*/files/*.py")]
    assert len(files) > 40
    for file in files:
        ast.parse(file.read_text(), str(file), feature_version=OLDEST_PYTHON)


def test_programs_for_hosts_use_no_library_newer_than_the_oldest_python_there() -> None:
    installed = ROOT / ".collections/ansible_collections/r1/prov"
    files = [
        *(installed / folder for folder in ("plugins/modules", "plugins/module_utils")),
        *(ROOT / folder for folder in ("r1prov/hosts/on_host", "r1prov/runs/on_host", *OF_ROLES)),
        *ROOT.glob("roles/*/files/*.py"),
    ]
    assert typed(files) == ""


def test_a_library_newer_than_the_oldest_python_is_seen(tmp_path: Path) -> None:
    (tmp_path / "new.py").write_text("import hashlib\nfrom datetime import UTC\n\nhashlib.file_digest\n")
    said = typed([tmp_path / "new.py"])
    assert '"datetime" has no attribute "UTC"' in said
    assert 'no attribute "file_digest"' in said


def typed(files: Iterable[Path]) -> str:
    """What mypy, which knows since when the standard library has what, says of programs on the oldest Python of hosts."""
    oldest = ".".join(map(str, OLDEST_PYTHON))
    command = [sys.executable, "-m", "mypy", "--no-error-summary", "--python-version", oldest, *files]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False).stdout


def test_syntax_newer_than_the_oldest_python_is_seen() -> None:
    with pytest.raises(SyntaxError, match="Exception groups"):
        ast.parse("try: pass\nexcept* OSError: pass", feature_version=OLDEST_PYTHON)


def test_an_import_that_nobody_declares_is_seen() -> None:
    found = undeclared({"yaml": ["a.py"], "requests.adapters": ["b.py"]}, {"pyyaml", "numpy"})
    assert found == {"requests.adapters": ["b.py"]}
