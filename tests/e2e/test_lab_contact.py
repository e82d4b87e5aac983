"""First contact with a server whose Python is older than what r1prov needs there."""

from __future__ import annotations

from pathlib import Path

import pytest

from r1prov.common.errors import Exit

from .conftest import fresh
from .people import Operator, told, untouched

pytestmark = [pytest.mark.host, pytest.mark.usefixtures("bootable")]


def test_a_server_with_python_3_9_is_refused_in_one_sentence_and_nothing_is_changed(tmp_path: Path) -> None:
    with fresh({"lab-contact-11": "bullseye"}) as (host,):
        assert told(host, "python3 -c 'import sys; print(*sys.version_info[:2])'") == "3 9"
        newcomer = Operator(tmp_path)
        newcomer.site([host])
        with untouched(host):
            said = newcomer.does("up", code=Exit.UNREACHABLE).stderr
        assert "lab-contact-11: has only Python 3.9.2; r1prov needs Python 3.10 or newer there\n" in said
        assert "set the server up with Debian 12, Ubuntu 22.04, or a newer release" in said
        told(host, "! test -e /var/lib/r1prov")
