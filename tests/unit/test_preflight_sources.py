"""Tests of asking sources over real sockets: servers that answer, refuse, stay silent, redirect, or have an untrusted certificate."""

from __future__ import annotations

import datetime
import ipaddress
import os
import socket
import ssl
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING

import pytest
from ansible_collections.r1.prov.plugins.module_utils import source_probe, sourced
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@contextmanager
def server(status: int, tls: ssl.SSLContext | None = None) -> Iterator[str]:
    """The address of a server that answers every request with `status`."""

    class Answer(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.send_response(status)
            self.send_header("Location", "http://192.0.2.1/")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Answer) as http:
        if tls:
            http.socket = tls.wrap_socket(http.socket, server_side=True)
        threading.Thread(target=http.serve_forever, args=(0.01,), daemon=True).start()
        yield f"{'https' if tls else 'http'}://127.0.0.1:{http.server_port}/"
        http.shutdown()


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch):
    for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)


def problems(*sources: str, ca_pem: str = "", limit_s: float = 3) -> list[str]:
    return [found["problem"] for found in source_probe.silent(list(sources), ca_pem, limit_s)]


@pytest.mark.parametrize("status", [200, 302, 401, 403, 404, 405, 500])
def test_any_answer_of_the_server_counts(status: int):
    with server(status) as address:
        assert problems(address) == []


@pytest.mark.parametrize("status", [502, 503, 504, 407])
def test_an_answer_in_place_of_the_server_does_not(status: int):
    with server(status) as address:
        assert str(status) in problems(address)[0]


def test_a_closed_port_and_an_unknown_name():
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    assert problems(f"http://127.0.0.1:{port}/") == ["Connection refused"]
    assert problems("http://r1prov.invalid/", limit_s=20) == ["its name cannot be resolved"]


def test_many_silent_sources_take_one_limit():
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"http://127.0.0.1:{silent.getsockname()[1]}/"
        started = time.monotonic()
        found = problems(*[address + str(number) for number in range(8)], limit_s=1)
        assert time.monotonic() - started < 6  # one after the other, they would take eight seconds
    assert len(found) == 8


def test_a_proxy_of_the_environment_is_used(monkeypatch: pytest.MonkeyPatch):
    with server(204) as proxy:
        monkeypatch.setenv("http_proxy", proxy)
        assert problems("http://r1prov.invalid/") == []


def test_a_proxy_that_refuses_a_tunnel(monkeypatch: pytest.MonkeyPatch):
    with server(204) as proxy:
        monkeypatch.setenv("https_proxy", proxy)
        assert "the proxy refuses it (501" in problems("https://r1prov.invalid/")[0]


def test_an_authority_that_is_not_known_and_one_that_is_given(tmp_path: Path):
    pem, tls = certificate(tmp_path, valid_days=1)
    with server(200, tls) as address:
        [problem] = source_probe.silent([address], "", 3)
        assert "signed by an authority this host does not know" in problem["problem"]
        assert "ca_certificates" in problem["remedy"]
        assert problems(address, ca_pem=pem) == []


def test_a_certificate_that_has_expired(tmp_path: Path):
    pem, tls = certificate(tmp_path, valid_days=-1)
    with server(200, tls) as address:
        [problem] = source_probe.silent([address], pem, 3)
    assert "not valid now" in problem["problem"]
    assert "clock" in problem["remedy"]


def test_a_bare_host_without_authorities_tries_the_way_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("SSL_CERT_DIR", str(tmp_path))
    _, tls = certificate(tmp_path, valid_days=1)
    with server(200, tls) as address:
        assert problems(address) == []


def test_paths(tmp_path: Path):
    (tmp_path / "there").touch()
    assert problems(str(tmp_path / "there"), f"file://{tmp_path}/there") == []
    assert problems(str(tmp_path / "gone")) == ["there is no such file or folder on the host"]


def need(*any_of: str, have: tuple[str, ...] = ()) -> dict:
    return {"what": "the weights", "any_of": list(any_of), "have": list(have), "environment_file": ""}


def test_one_source_that_answers_is_enough(tmp_path: Path):
    assert source_probe.out_of_reach([need("/gone", str(tmp_path))], "", 3) == []


def test_a_need_that_no_source_meets():
    [found] = source_probe.out_of_reach([need("/gone", "/away")], "", 3)
    assert [answer["source"] for answer in found["tried"]] == ["/gone", "/away"]


def test_what_is_there_needs_no_source(tmp_path: Path):
    (tmp_path / "release-1").mkdir()
    assert source_probe.out_of_reach([need("/gone", have=(f"{tmp_path}/release-*",))], "", 3) == []
    assert source_probe.out_of_reach([need("/gone", have=(f"{tmp_path}/release-*", f"{tmp_path}/more"))], "", 3)


def test_a_password_is_not_shown():
    [found] = source_probe.silent(["http://ann:se@cret@127.0.0.1:1/x"], "", 3)
    assert found["source"] == "http://127.0.0.1:1/x"
    assert "cret" not in found["problem"]


def test_a_server_with_a_login_answers():
    with server(401) as address:
        assert problems(address.replace("//", "//ann:secret@")) == []


def certificate(folder: Path, valid_days: int) -> tuple[str, ssl.SSLContext]:
    """A self-signed certificate for 127.0.0.1: its PEM, and the context for a server."""
    key, now = ec.generate_private_key(ec.SECP256R1()), datetime.datetime.now(datetime.UTC)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "127.0.0.1")])
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=2))
        .not_valid_after(now + datetime.timedelta(days=valid_days))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem = made.public_bytes(serialization.Encoding.PEM)
    secret = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    (folder / "server.pem").write_bytes(secret + pem)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "server.pem")
    return pem.decode(), context


def proxy_script(folder: Path, address: str, more: str = "") -> str:
    """A script as platforms have them, which also talks."""
    script = folder / "network turbo"
    script.write_text(f"echo welcome\nexport http_proxy={address} no_proxy=127.0.0.1\n{more}")
    return str(script)


def by_way_of(script: str, *any_of: str) -> dict:
    return need(*any_of) | {"environment_file": script}


def test_the_script_of_a_source_says_by_which_proxy_it_is_reached(tmp_path: Path):
    """Beside it, another need is asked without that proxy. Both ask at once."""
    with server(200) as proxy, server(200) as own:
        script = proxy_script(tmp_path, proxy)
        far = "http://r1prov.invalid/"
        assert source_probe.out_of_reach([by_way_of(script, far), by_way_of(script, own), need(own)], "", 10) == []
        (found,) = source_probe.out_of_reach([need(far), by_way_of(script, far)], "", 10)
        assert found["tried"][0]["problem"] == "its name cannot be resolved"
    assert "http_proxy" not in os.environ


@pytest.mark.parametrize("more", ["", "return 3\n"])
def test_a_script_that_cannot_be_sourced_is_said_once(tmp_path: Path, more: str):
    script = proxy_script(tmp_path, "http://127.0.0.1:9", more) if more else f"{tmp_path}/none"
    (found,) = source_probe.out_of_reach([by_way_of(script, "http://r1prov.invalid/", "http://other.invalid/")], "", 10)
    (tried,) = found["tried"]
    assert tried["problem"].startswith(f"{script} cannot be sourced")
    assert "environment_file" in tried["remedy"]


def test_what_a_script_sets_is_for_whoever_asks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("KEPT", "as it was")
    script = proxy_script(tmp_path, "http://127.0.0.1:9", "export TWO_LINES='a\nb'\n")
    found = sourced.variables(script)
    assert found == {"http_proxy": "http://127.0.0.1:9", "no_proxy": "127.0.0.1", "TWO_LINES": "a\nb"}
    assert sourced.variables("") == {}
