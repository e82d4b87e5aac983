"""What r1prov writes, as a person reads it: one example whole, and of the others what differs from it.

`R1PROV_GOLDEN=write` in the environment of a test writes its files anew.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).parent


def kept(found: Mapping[str, str], example: Mapping[str, str]) -> dict[str, str]:
    """How texts are kept beside an example's: `NAME.diff` for one that differs, nothing for one that is the same.

    A difference has one line of context and no line numbers, so a line that is added to both changes the example alone.
    """
    result = {}
    for name in sorted({*found, *example}):
        old, new = example.get(name, "").splitlines(), found.get(name, "").splitlines()
        lines = list(difflib.unified_diff(old, new, lineterm="", n=1))[2:]
        if lines:
            result[f"{name}.diff"] = "".join(f"{'@@' if line.startswith('@@') else line}\n" for line in lines)
    return result


def assert_golden(found: Mapping[str, str], folder: str) -> None:
    """Expects texts to be the files of a folder, and no others to lie there; names may have folders in them."""
    golden = ROOT / folder
    if os.environ.get("R1PROV_GOLDEN") == "write":
        for path in _files(golden):
            (golden / path).unlink()
        for name, text in found.items():
            (golden / name).parent.mkdir(parents=True, exist_ok=True)
            (golden / name).write_text(text)
    assert dict(found) == _files(golden)


def _files(golden: Path) -> dict[str, str]:
    return {str(path.relative_to(golden)): path.read_text() for path in sorted(golden.rglob("*")) if path.is_file()}
