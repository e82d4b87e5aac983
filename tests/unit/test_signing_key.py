"""Tests of the key of a package archive: two keys that gpg has made for these tests, and a web server that gives them to the module."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from ansible_collections.r1.prov.plugins.module_utils import openpgp

from r1prov.common import paths

GOOD, EVIL = "A526DF317B6AA193BE7140F7F59CBFE43AEE440C", "E9D266FA68967160CFE4FB0DCFA3855B5A87D408"
GOOD_KEY = """-----BEGIN PGP PUBLIC KEY BLOCK-----

mI0Eawr/MwEEAL6nAExXB0ChVYSMJmDdCkYXze30+/zx01NrvL4Akz4xqNjrvsSW
fcDQ90tPqJlBUkSx2Qb5Vs0IM4poIPdPDc2z+YcK/rHWTozJh1LOCGnFL7Qj/byk
Lp4OHaXLigNckXEwnOT5izLUo0C2811jXkkPzRd5aJriT2AtwBRo0m4pABEBAAG0
F2dvb2QgPGdvb2RAZXhhbXBsZS5jb20+iM4EEwEKADgWIQSlJt8xe2qhk75xQPf1
nL/kOu5EDAUCawr/MwIbAwULCQgHAgYVCgkICwIEFgIDAQIeAQIXgAAKCRD1nL/k
Ou5EDHZgA/9KIInES/uFGsLiA0m669XuoiDydo817BMVjBe+BOReyB00L6FZq1IH
A7QGkXtHKMQuv8QVy1u0j5M9XAE6YifzAcG5n9jfh4kUoIrNW9p0hr865Bkcb67s
3huDtMawRFUxLqDfU4a0r0vjfZAkOWgrYqXkWXm7fLWkw5scuat4aQ==
=mxYn
-----END PGP PUBLIC KEY BLOCK-----
"""
EVIL_KEY = """-----BEGIN PGP PUBLIC KEY BLOCK-----

mDMEawr/MxYJKwYBBAHaRw8BAQdA3BhYKN9BcAhHS3DcNY+/r7cNkw+XeoUtZnTr
zwWIOI20F2V2aWwgPGV2aWxAZXhhbXBsZS5jb20+iJAEExYIADgWIQTp0mb6aJZx
YM/k+w3Po4VbWofUCAUCawr/MwIbAwULCQgHAgYVCgkICwIEFgIDAQIeAQIXgAAK
CRDPo4VbWofUCCRcAQDkhouDp8HKkswTawLkwPwqtxSAH55yGLi1qdHgNSaHeAEA
wnb73lnV+aMBO1H1DR651LSkPe+APn6Q8SjsnRL22AE=
=onnZ
-----END PGP PUBLIC KEY BLOCK-----
"""


def packets(armoured: str) -> bytes:
    """The bytes in the ASCII armour."""
    text = armoured.partition("\n\n")[2].partition("\n=")[0]
    return base64.b64decode(text)


def rewritten(key: bytes) -> bytes:
    """The same packets with headers in today's format, as Sequoia writes them; gpg writes those of old."""
    parts = []
    for tag, body in openpgp._split(key):
        size = len(body)
        length = bytes([size]) if size < 192 else bytes([(size - 192 >> 8) + 192, size - 192 & 0xFF])
        parts.append(bytes([0xC0 | tag]) + length + body)
    return b"".join(parts)


BOTH_IN_ONE_BLOCK = "\n".join(
    [
        "-----BEGIN PGP PUBLIC KEY BLOCK-----",
        "Comment: two keys",
        "",
        base64.encodebytes(packets(GOOD_KEY) + packets(EVIL_KEY)).decode(),
        "-----END PGP PUBLIC KEY BLOCK-----",
    ]
)
FILES = {
    "good.pub": GOOD_KEY.encode(),
    "crlf.pub": GOOD_KEY.replace("\n", "\r\n").encode(),
    "good.bin": packets(GOOD_KEY),
    "todays.bin": rewritten(packets(GOOD_KEY)),
    "evil.pub": EVIL_KEY.encode(),
    "both.pub": (GOOD_KEY + EVIL_KEY).encode(),
    "both.bin": packets(GOOD_KEY) + rewritten(packets(EVIL_KEY)),
    "one-block.pub": BOTH_IN_ONE_BLOCK.encode(),
    "page.pub": b"<html>log in</html>",
    "empty.pub": b"",
    "cut.bin": packets(GOOD_KEY)[:100],
}


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    (tmp_path / "www").mkdir()
    for name, content in FILES.items():
        (tmp_path / "www" / name).write_bytes(content)
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(tmp_path / "www"))) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()


def brought(url: str, path: Path) -> str:
    """What Ansible prints when the module brings a file of the server, from which the good key is wanted."""
    asked = {"url": url, "path": str(path), "fingerprint": GOOD}
    ansible = Path(sys.executable).with_name("ansible")
    environment = {
        "ANSIBLE_COLLECTIONS_PATH": str(paths.collections_path()),
        "ANSIBLE_LOCAL_TEMP": str(path.parent / "tmp"),
        "no_proxy": "127.0.0.1",
    }
    command = [ansible, "localhost", "-m", "r1.prov.signing_key", "-a", json.dumps(asked)]
    done = subprocess.run(command, env=os.environ | environment, capture_output=True, text=True, check=False)
    return " ".join(done.stdout.split())


def test_the_key_with_the_fingerprint_is_written_without_its_armour(server: str, tmp_path: Path) -> None:
    path = tmp_path / "nvidia.gpg"
    assert "localhost | CHANGED" in brought(f"{server}/good.pub", path)
    assert path.read_bytes() == packets(GOOD_KEY)
    assert path.stat().st_mode & 0o777 == 0o644
    assert "localhost | SUCCESS" in brought(f"{server}/nothing-there.pub", path)


@pytest.mark.parametrize("name", ["evil.pub", "both.pub", "page.pub"])
def test_any_other_file_is_refused_and_what_lay_there_is_removed(server: str, tmp_path: Path, name: str) -> None:
    path = tmp_path / "nvidia.gpg"
    path.write_bytes(packets(EVIL_KEY))
    said = brought(f"{server}/{name}", path)
    assert "localhost | FAILED" in said
    assert f"{GOOD} alone is wanted" in said
    assert not path.exists()


@pytest.mark.parametrize(
    ("name", "found"),
    [
        *((name, [GOOD]) for name in ("good.pub", "crlf.pub", "good.bin", "todays.bin")),
        *((name, [GOOD, EVIL]) for name in ("both.pub", "both.bin", "one-block.pub")),
    ],
)
def test_all_keys_of_a_file_are_found(name: str, found: list[str]) -> None:
    assert openpgp.fingerprints(openpgp.binary(FILES[name])) == found


@pytest.mark.parametrize("name", ["page.pub", "empty.pub", "cut.bin"])
def test_what_is_no_key_is_said(name: str) -> None:
    with pytest.raises(openpgp.KeyFileError):
        openpgp.fingerprints(openpgp.binary(FILES[name]))
