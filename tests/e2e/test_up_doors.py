"""The other doors of the servers that test_up.py has set up: the chat page and its secrets."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import pytest

from r1prov.common import paths
from r1prov.lab.hosts import LabHost

from .page import Page
from .people import MODEL, QUESTION, Operator, told

pytestmark = pytest.mark.host
EVE = {"email": "eve@example.com", "password": "eves-very-own-passphrase"}


def assert_nowhere_but_in_roots_files(secrets: list[str], pair: list[LabHost]) -> None:
    """Neither in the journal, nor in a command line, nor in a file that others than root can read."""
    for host in pair:
        shown = told(host, "journalctl --no-pager; cat /proc/[0-9]*/cmdline | tr '\\0' ' '; systemctl cat 'r1prov-*'")
        assert "systemd[1]: Started" in shown
        text = told(
            host,
            "find /etc /run /var/lib/r1prov /opt/r1prov -xdev -type f -perm /044 -size -100k -exec cat {} + | strings",
        )
        assert text
        assert not [secret for secret in secrets if secret in shown or secret in text]


def test_the_page_answers_and_nobody_signs_up(operator: Operator, pair: list[LabHost]) -> None:
    for host in pair:
        with operator.opens(host) as doors:
            page = operator.logs_in(doors)
            assert page.models() == [MODEL]
            assert "Paris" in page.ask(MODEL, QUESTION)
            stranger = Page(doors["page"])
            body = {"name": "s", "email": "s@example.com", "password": "correct-horse-7"}
            assert stranger.call("/api/v1/auths/signup", body)[0] == 403
            assert stranger.call("/api/models")[0] in {401, 403}


def test_one_copy_of_the_weights(pair: list[LabHost]) -> None:
    for host in pair:
        folder = f"/srv/r1prov/models/{MODEL}"
        model = int(told(host, f"stat --format=%s {folder}/{MODEL}.gguf"))
        both = told(host, f"du --summarize --total --block-size=1 {folder} /srv/r1prov/ollama")
        assert int(both.splitlines()[-1].split()[0]) <= 1.01 * model


def test_the_page_moves_to_another_server(operator: Operator, pair: list[LabHost], tmp_path: Path) -> None:
    """With the commands of docs/backup.md, but for their `ssh root@SERVER`."""
    text = (paths.collection() / "docs/backup.md").read_text()
    packing, unpacking = (re.search(rf"    ssh root@{host} '([^']+)' [<>] page.tar", text) for host in ("OLD", "NEW"))
    assert packing
    assert unpacking
    with operator.opens(pair[0]) as doors:
        page = operator.logs_in(doors)
        assert page.call("/api/v1/auths/add", {"name": "Eve", "role": "user", **EVE})[0] == 200
    packed = tmp_path / "page.tar"
    with packed.open("wb") as file:
        subprocess.run([*pair[0].ssh_argv(), packing[1]], stdout=file, check=True)
    with packed.open("rb") as file:
        subprocess.run([*pair[1].ssh_argv(), unpacking[1]], stdin=file, check=True)
    told(pair[0], "systemctl start r1prov-open-webui")
    for host in pair:
        with operator.opens(host) as doors:
            assert Page(doors["page"]).log_in(**EVE) == 200


def test_a_rotated_secret_is_the_only_one_and_ends_what_it_has_signed(operator: Operator, pair: list[LabHost]) -> None:
    names = ("api-key", "webui-admin-password", "webui-secret-key")
    old = {name: operator.secret(name) for name in names}
    sessions = {}
    for host in pair:
        with operator.opens(host) as doors:
            person = Page(doors["page"])
            assert person.log_in(**EVE) == 200
            sessions[host.name] = (operator.logs_in(doors).token, person.token)
    operator.does("secrets", "rotate")
    new = {name: operator.secret(name) for name in names}
    assert not [name for name in names if new[name] == old[name]]
    for host in pair:
        with operator.opens(host) as doors:
            api = doors["api"].removesuffix("/v1")
            assert Page(api, old["api-key"]).call("/v1/chat/completions", {"messages": []})[0] == 401
            assert Page(api, new["api-key"]).call("/v1/models")[0] == 200
            for token in sessions[host.name]:
                assert Page(doors["page"], token).call("/api/models")[0] == 401
            assert Page(doors["page"]).log_in(doors["email"], old["webui-admin-password"]) == 400
            assert "Paris" in operator.logs_in(doors).ask(MODEL, QUESTION)
    assert_nowhere_but_in_roots_files([*old.values(), *new.values()], pair)


def test_a_password_that_was_chosen_in_the_page_stays_until_the_file_changes(
    operator: Operator, pair: list[LabHost]
) -> None:
    host, own = pair[0], "the-administrators-own-choice"
    with operator.opens(host) as doors:
        page = operator.logs_in(doors)
        change = {"password": operator.secret("webui-admin-password"), "new_password": own}
        assert page.call("/api/v1/auths/update/password", change)[0] == 200
    operator.does("up", host.name)
    assert operator.changes == {host.name: []}
    # Also through the page, although r1prov does not know the password.
    operator.does("bench", host.name, "--limit", "20s")
    waits = json.loads((operator.folder / ".r1prov" / "reports" / f"{host.name}.json").read_text())["first_tokens"]
    assert [(each["prompt_tokens"], each["users"]) for each in waits] == [
        (512, 1), (512, 2), (2000, 1), (2000, 2), (8000, 1), (8000, 2)
    ]  # fmt: skip
    assert [bool(each["planned_s"]) for each in waits] == [True] * 4 + [False] * 2
    assert all(each["left_out"] or each["last_first_token_s"] > 0 for each in waits)
    assert "a slot holds 2,048 tokens" in waits[-1]["left_out"]
    others = [operator.secret(name) for name in ("api-key", "webui-secret-key")]
    with operator.opens(host) as doors:
        page, person = Page(doors["page"]), Page(doors["page"])
        assert page.log_in(doors["email"], own) == 200
        assert person.log_in(**EVE) == 200
    operator.does("secrets", "rotate", "--only", "webui-admin-password")
    assert [operator.secret(name) for name in ("api-key", "webui-secret-key")] == others
    with operator.opens(host) as doors:
        assert Page(doors["page"]).log_in(doors["email"], own) == 400
        assert Page(doors["page"], page.token).call("/api/models")[0] == 401
        assert Page(doors["page"], person.token).call("/api/models")[0] == 200
        operator.logs_in(doors)
