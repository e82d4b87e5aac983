"""Tests that what a module fetches with is on no command line: real Ansible, whose children are looked at while a module runs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import yaml

from r1prov.common import paths

ROOT = Path(__file__).resolve().parents[2]
SECRET = "a-password-of-the-proxy"


class Proxy(BaseHTTPRequestHandler):
    """Notes every command line of this machine while it is asked, and what it was asked with."""

    seen: list[str]
    shown: list[str]

    def do_GET(self) -> None:
        lines = (path.read_bytes() for path in Path("/proc").glob("[0-9]*/cmdline") if path.exists())
        type(self).seen += [line.replace(b"\0", b" ").decode(errors="replace") for line in lines]
        type(self).shown.append(self.headers.get("Proxy-Authorization", ""))
        self.send_error(404)

    def log_message(self, *_: object) -> None:
        pass


def test_the_password_of_a_proxy_is_on_no_command_line_and_in_no_message(tmp_path: Path) -> None:
    Proxy.seen, Proxy.shown = [], []
    with ThreadingHTTPServer(("127.0.0.1", 0), Proxy) as proxy:
        threading.Thread(target=proxy.serve_forever, daemon=True).start()
        [play, _] = yaml.safe_load((ROOT / "playbooks" / "up.yml").read_text())
        asked = {"url": "http://nobody.invalid/key.pub", "path": str(tmp_path / "key.gpg"), "fingerprint": "0" * 40}
        keywords = {key: play[key] for key in ("environment", "module_defaults") if key in play}
        variables = {
            "r1prov_environment": {"http_proxy": f"http://ann:{SECRET}@127.0.0.1:{proxy.server_port}"},
            "build_deps_environment": {},
        }
        shown = {"hosts": "localhost", "connection": "local", "gather_facts": False, **keywords, "vars": variables}
        shown["tasks"] = [{"name": "Fetch", "r1.prov.signing_key": asked}]
        (tmp_path / "play.yml").write_text(yaml.safe_dump([shown]))
        environment = {
            "ANSIBLE_COLLECTIONS_PATH": str(paths.collections_path()),
            "ANSIBLE_LOCAL_TEMP": str(tmp_path / "tmp"),
            "ANSIBLE_PIPELINING": "1",
        }
        done = subprocess.run(
            [Path(sys.executable).with_name("ansible-playbook"), "-vvv", tmp_path / "play.yml"],
            env=os.environ | environment,
            capture_output=True,
            text=True,
            check=False,
        )
        proxy.shutdown()
    assert Proxy.shown, done.stdout + done.stderr
    assert Proxy.shown[0].startswith("Basic ")
    assert any("python" in line for line in Proxy.seen)
    assert not [line for line in Proxy.seen if SECRET in line]
    assert SECRET not in done.stdout.replace(json.dumps(variables), "") + done.stderr


def test_every_module_that_can_be_told_the_variables_is() -> None:
    modules = {
        path.stem for path in (ROOT / "plugins/modules").glob("*.py") if "fetching.set_environment" in path.read_text()
    }
    runtime = yaml.safe_load((ROOT / "meta/runtime.yml").read_text())
    assert set(runtime["action_groups"]["fetching"]) == modules
    readers = {path.stem for path in (ROOT / "plugins/modules").glob("*.py") if "open_url" in path.read_text()}
    assert readers <= modules | {"smoke_bench"}
