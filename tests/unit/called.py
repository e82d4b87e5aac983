"""The command line, called as a function."""

from __future__ import annotations

import json

import pytest

from r1prov.cli import main


def run(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    """The exit code, stdout and stderr of `r1prov WORDS`."""
    with pytest.raises(SystemExit) as ended:
        main(words)
    out, err = capsys.readouterr()
    return int(ended.value.code or 0), out, err


def document(capsys: pytest.CaptureFixture[str], *words: str) -> dict:
    """The JSON document that `r1prov WORDS` prints. It must end well."""
    code, out, err = run(capsys, *words)
    assert code == 0, out + err
    return json.loads(out)
