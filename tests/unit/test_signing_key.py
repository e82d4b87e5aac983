"""Tests of the key of a package archive: keys that gpg has made, and a module that a web server on this machine gives them to."""

from __future__ import annotations

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


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


class Keys:
    """Two keys in files, which a web server gives out."""

    def __init__(self, folder: Path, url: str) -> None:
        self.url, self.folder, self._home = url, folder / "www", folder / "gpg"
        self._home.mkdir(mode=0o700)
        self.fingerprint = {name: self._make(name, kind) for name, kind in (("good", "rsa2048"), ("evil", "ed25519"))}
        for name, options in (("good.pub", ["--armor"]), ("evil.pub", ["--armor"]), ("good.bin", [])):
            (self.folder / name).write_bytes(self.gpg(*options, "--export", name.partition(".")[0]))
        good, evil = ((self.folder / f"{name}.pub").read_bytes() for name in ("good", "evil"))
        (self.folder / "both.pub").write_bytes(good + evil)
        (self.folder / "one-block.pub").write_bytes(self.gpg("--armor", "--export"))
        (self.folder / "page.pub").write_text("<html>log in</html>")
        (self.folder / "cut.pub").write_bytes((self.folder / "good.bin").read_bytes()[:200])

    def gpg(self, *arguments: str) -> bytes:
        command = ["gpg", "--batch", "--quiet", "--homedir", str(self._home), *arguments]
        return subprocess.run(command, capture_output=True, check=True).stdout

    def _make(self, name: str, kind: str) -> str:
        self.gpg("--passphrase", "", "--quick-gen-key", f"{name} <{name}@example.com>", kind, "sign", "never")
        listed = self.gpg("--with-colons", "--list-keys", name).decode()
        return next(line.split(":")[9] for line in listed.splitlines() if line.startswith("fpr:"))


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Keys]:
    folder = tmp_path_factory.mktemp("keys")
    (folder / "www").mkdir()
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder / "www"))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield Keys(folder, f"http://127.0.0.1:{server.server_port}")
        server.shutdown()


def brought(keys: Keys, name: str, path: Path) -> str:
    """What Ansible prints when the module brings a file of the server, from which the good key is wanted."""
    asked = {"url": f"{keys.url}/{name}", "path": str(path), "fingerprint": keys.fingerprint["good"]}
    ansible = Path(sys.executable).with_name("ansible")
    environment = {
        "ANSIBLE_COLLECTIONS_PATH": str(paths.collections_path()),
        "ANSIBLE_LOCAL_TEMP": str(path.parent / "tmp"),
        "no_proxy": "127.0.0.1",
    }
    command = [ansible, "localhost", "-m", "r1.prov.signing_key", "-a", json.dumps(asked)]
    done = subprocess.run(command, env=os.environ | environment, capture_output=True, text=True, check=False)
    return " ".join(done.stdout.split())


def test_the_key_with_the_fingerprint_is_written_without_its_armour(keys: Keys, tmp_path: Path) -> None:
    path = tmp_path / "nvidia.gpg"
    assert "localhost | CHANGED" in brought(keys, "good.pub", path)
    assert path.read_bytes() == keys.gpg("--export", "good")
    assert path.stat().st_mode & 0o777 == 0o644
    assert "localhost | SUCCESS" in brought(keys, "nothing-there.pub", path)


@pytest.mark.parametrize("name", ["evil.pub", "both.pub", "page.pub"])
def test_any_other_file_is_refused_and_what_lay_there_is_removed(keys: Keys, tmp_path: Path, name: str) -> None:
    path = tmp_path / "nvidia.gpg"
    path.write_bytes(keys.gpg("--export", "evil"))
    said = brought(keys, name, path)
    assert "localhost | FAILED" in said
    assert f"{keys.fingerprint['good']} alone is wanted" in said
    assert not path.exists()


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("good.pub", ["good"]),
        ("good.bin", ["good"]),
        ("both.pub", ["good", "evil"]),
        ("one-block.pub", ["good", "evil"]),
    ],
)
def test_all_keys_of_a_file_are_found(keys: Keys, name: str, found: list[str]) -> None:
    packets = openpgp.binary((keys.folder / name).read_bytes())
    assert openpgp.fingerprints(packets) == [keys.fingerprint[key] for key in found]


@pytest.mark.parametrize("name", ["page.pub", "cut.pub"])
def test_what_is_no_key_is_said(keys: Keys, name: str) -> None:
    with pytest.raises(openpgp.KeyFileError):
        openpgp.fingerprints(openpgp.binary((keys.folder / name).read_bytes()))
