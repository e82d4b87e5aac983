"""A server without a network, and an operator who has carried everything there."""

from __future__ import annotations

import json
from concurrent.futures import Future
from pathlib import Path

import pytest

from r1prov import lab
from r1prov.lab.hosts import LabHost
from r1prov.site import TESTED_LLAMA_CPP

from .conftest import fresh
from .offline import artefacts
from .people import Operator

pytestmark = pytest.mark.host


def test_without_the_outside_the_artefacts_at_hand_are_enough(
    wheels: Future[Path], alone: LabHost, tmp_path: Path
) -> None:
    with fresh({"e2e-off": "bookworm"}) as (host,):
        lab.cut(host)
        operator = Operator(tmp_path)
        with artefacts(tmp_path / "artefacts", like=alone, wheels=wheels.result()) as at_hand:
            operator.site([host], sources=at_hand, versions={"llama_cpp": TESTED_LLAMA_CPP["pypi"]})
            operator.does("up")
        measured = json.loads((tmp_path / ".r1prov" / "reports" / f"{host.name}.json").read_text())
        assert all("Paris" in measured[door]["answer"] for door in ("question", "page"))
