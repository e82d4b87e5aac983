"""Tests of the looks at units, processes, accounts, places and packages: each on real files, and on a real process."""

from __future__ import annotations

import functools
import hashlib
import itertools
import os
import pwd
import re
import signal
import subprocess
import sys
import time
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

import pytest
import yaml
from ansible_collections.r1.prov.plugins.module_utils import (
    account_look,
    confinement_look,
    package_look,
    place_look,
    process_look,
    unit_look,
)
from ansible_collections.r1.prov.plugins.modules import nft_rules, service_account, shared_group

ROOT = Path(__file__).parents[2]
UNIT = "r1prov-llama-server.service"


@pytest.fixture
def folders(tmp_path: Path) -> dict[str, Path]:
    """Folders of units, the first of which is where r1prov writes."""
    found = {name: tmp_path / name for name in ("etc", "run", "control")}
    for folder in found.values():
        folder.mkdir()
    (found["etc"] / UNIT).write_text("[Service]\nExecStart=/bin/true\n")
    return found


def seen(folders: dict[str, Path], unit: str = UNIT) -> list[str]:
    """The sentences about a unit, without the mode of its file, which root's tests decide."""
    found = unit_look.look(unit, folders=list(folders.values()), ours=folders["etc"])
    return [each.sentence.replace(str(folders["etc"].parent), "") for each in found if each.kind != "mode"]


def drop_in(folder: Path, of: str, text: str = "[Service]\nIPAddressDeny=\nUser=root\n") -> None:
    path = folder / f"{of}.d" / "x.conf"
    path.parent.mkdir()
    path.write_text(text)


def test_a_unit_that_nobody_has_changed(folders: dict[str, Path]) -> None:
    wants = folders["etc"] / "multi-user.target.wants"
    wants.mkdir()
    (wants / UNIT).symlink_to(f"../{UNIT}")
    drop_in(folders["etc"], "nginx.service")
    drop_in(folders["etc"], "r1prov-ollama.service")
    assert seen(folders) == []


@pytest.mark.parametrize("of", [UNIT, "r1prov-.service", "r1prov-llama-.service"])
@pytest.mark.parametrize("where", ["etc", "run", "control"])
def test_every_drop_in_is_named_with_what_it_changes(folders: dict[str, Path], where: str, of: str) -> None:
    drop_in(folders[where], of)
    of_whom = UNIT if of == UNIT else f"units that are called {of.removesuffix('.service')}*"
    assert seen(folders) == [f"the drop-in /{where}/{of}.d/x.conf changes IPAddressDeny, User of {of_whom}"]


def test_a_drop_in_for_all_services_is_the_administrators(folders: dict[str, Path]) -> None:
    drop_in(folders["run"], "service")
    assert seen(folders) == []
    (told,) = unit_look.administrators(UNIT, folders.values())
    assert told.sentence.endswith(
        "changes IPAddressDeny, User of every service, those of r1prov too. It is not r1prov's, so it stays"
    )


def test_a_variable_for_every_service_is_the_administrators() -> None:
    (told,) = unit_look.variables(["LANG", "PATH", "https_proxy", "LLAMA_ARG_HOST"])
    assert told.sentence.startswith("systemd gives every service the variable LLAMA_ARG_HOST, those of r1prov too")


def test_a_drop_in_that_systemd_has_read_under_another_name_counts(folders: dict[str, Path]) -> None:
    drop_in(folders["etc"], "alias.service")
    path = folders["etc"] / "alias.service.d" / "x.conf"
    (found,) = [
        each
        for each in unit_look.look(UNIT, [str(path)], list(folders.values()), folders["etc"])
        if each.kind == "drop-in"
    ]
    assert found.place == str(path)


def test_masks_second_files_links_and_other_names(folders: dict[str, Path]) -> None:
    (folders["run"] / UNIT).symlink_to("/dev/null")
    (folders["control"] / UNIT).write_text("[Service]\n")
    (folders["etc"] / "other.service").symlink_to(UNIT)
    (folders["etc"] / "sysinit.target.wants").mkdir()
    (folders["etc"] / "sysinit.target.wants" / UNIT).symlink_to(f"../{UNIT}")
    (folders["etc"] / f"{UNIT}.requires").mkdir()
    (folders["etc"] / f"{UNIT}.requires" / "evil.service").symlink_to("/dev/null")
    assert sorted(seen(folders)) == [
        f"/control/{UNIT} is a second file under the name of {UNIT}",
        f"/etc/other.service is another name for {UNIT}",
        f"/etc/{UNIT}.requires/evil.service lets {UNIT} start evil.service",
        f"/etc/sysinit.target.wants/{UNIT} lets sysinit.target start {UNIT}",
        f"/run/{UNIT} masks {UNIT}",
    ]


def test_strays_are_what_no_role_makes(folders: dict[str, Path]) -> None:
    (folders["run"] / "r1prov-x.socket").touch()
    drop_in(folders["etc"], "r1prov-gone.service")
    drop_in(folders["etc"], "r1prov-llama-.service")  # of a known unit, which has its own look
    found = unit_look.strays([UNIT], [UNIT, "r1prov-w.service", "ssh.service"], folders.values())
    assert [Path(each.place).name for each in found] == ["r1prov-gone.service.d", "r1prov-x.socket", "r1prov-w.service"]


def test_the_list_of_units_is_what_the_roles_make() -> None:
    known = set(yaml.safe_load((ROOT / "roles/service/vars/main.yml").read_text())["__service_units"])
    made = {"r1prov-network.service", "r1prov-watch.service", "r1prov-watch.timer"}
    for path in ROOT.glob("roles/*/tasks/*.yml"):
        text = path.read_text()
        for name, variables in re.findall(r"service_name: (r1prov-\S+)\n((?: +.*\n)*)", text):
            made |= {f"{name}.service"} | ({f"{name}.socket"} if name.endswith("-door") else set())
            made |= {f"{name}.timer"} if "service_every_s:" in variables else set()
    assert known == made


def test_the_lists_of_programs_and_accounts_are_what_the_roles_make() -> None:
    known = yaml.safe_load((ROOT / "roles/service/vars/main.yml").read_text())
    texts = [path.read_text() for path in ROOT.glob("roles/*/tasks/*.yml")]
    places = [*texts, (ROOT / "roles/measure/vars/main.yml").read_text()]
    programs = {name for text in places for name in re.findall(r"/usr/local/lib/(r1prov-[a-z-]+)", text)}
    named = {name for text in texts for name in re.findall(r"service_user: (r1prov-\S+)", text)}
    accounts = named | {name for text in texts for name in re.findall(r"service_account:\n +name: (r1prov-\S+)", text)}
    assert set(known["__service_programs"]) == programs
    assert set(known["__service_accounts"]) == accounts


@pytest.fixture
def sleeper(tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process of a copy of this Python, with one variable."""
    program = tmp_path / "sleeper"
    program.write_text(f"#!{sys.executable}\nimport time\ntime.sleep(600)\n")
    program.chmod(0o755)
    process = subprocess.Popen([program, "--port", "1"], env={"A": "b", "LANG": "C"})
    while b"--port" not in Path(f"/proc/{process.pid}/cmdline").read_bytes().split(b"sleeper")[-1]:
        time.sleep(0.01)
    yield process
    process.kill()
    process.wait()


def differences(process: subprocess.Popen[bytes], **declared: object) -> list[str]:
    me = pwd.getpwuid(os.geteuid())
    is_well: dict[str, object] = {
        "argv": [str(process.args[0]), "--port", "1"],  # type: ignore[index]
        "environment": {"A": "b"},
        "secret": [],
        "any_environment": False,
        "user": me.pw_name,
        "groups": os.getgroups(),
    }
    found = process_look.look("u.service", str(process.pid), [], process_look.Declared(**is_well | declared))  # type: ignore[arg-type]
    return [each.kind for each in found]


def test_a_process_that_is_as_declared(sleeper: subprocess.Popen[bytes]) -> None:
    assert differences(sleeper) == []
    # HAProxy gives itself variables whose names begin with its own.
    assert differences(sleeper, environment={}, own_variables="A") == []


@pytest.mark.parametrize(
    ("declared", "kind"),
    [
        ({"argv": ["/bin/sleeper", "--port", "2"]}, "process arguments"),
        ({"environment": {"A": "c"}}, "process environment"),
        ({"environment": {"A": "b", "MORE": "1"}}, "process environment"),
        ({"environment": {}}, "process environment"),
        ({"environment": {}, "own_variables": "AB"}, "process environment"),
        ({"unit_file": "NoNewPrivileges=yes\nUMask=0777\n"}, "process umask"),
        ({"unit_file": "NoNewPrivileges=yes\n"}, "process confinement"),
        ({"unit_file": "NoNewPrivileges=yes\n", "group": "/system.slice/u.service"}, "process group of control"),
    ],
)
def test_a_process_that_is_not(
    sleeper: subprocess.Popen[bytes],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    declared: dict[str, object],
    kind: str,
) -> None:
    monkeypatch.setattr(confinement_look.units, "SYSTEMD", tmp_path)
    assert set(differences(sleeper, **declared)) >= {kind}


@pytest.mark.parametrize("systemd", [True, False])
def test_without_systemd_only_what_a_keeper_gives_is_missed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, systemd: bool
) -> None:
    monkeypatch.setattr(confinement_look.units, "SYSTEMD", tmp_path / ("" if systemd else "none"))
    text = "NoNewPrivileges=yes\nCapabilityBoundingSet=\nProtectSystem=strict\nUMask=0077\n"
    kept = {"NoNewPrivs": "1", "Seccomp": "0", "CapBnd": "3fffffffff", "CapPrm": "0", "CapEff": "0", "Umask": "0077"}
    told = [each.said for each in confinement_look.look(str(os.getpid()), text, kept)]
    for lost in ("may make any system call", "may write wherever", "capabilities that its unit does not give it"):
        assert any(lost in each for each in told) == systemd
    bad = kept | {"NoNewPrivs": "0", "CapEff": "1", "Umask": "0022"}
    told = [each.said for each in confinement_look.look(str(os.getpid()), text, bad)]
    for lacking in ("gain new privileges", "capabilities that its unit does not give it", "umask 0022"):
        assert any(lacking in each for each in told)


def test_a_process_with_an_argument_in_front(sleeper: subprocess.Popen[bytes]) -> None:
    sleeper.args = [str(sleeper.args[0]), "1"]  # type: ignore[index]
    assert differences(sleeper, argv=[str(sleeper.args[0]), "1"]) == ["process arguments"]


def test_a_process_of_another_user_and_of_more_groups(sleeper: subprocess.Popen[bytes]) -> None:
    assert "process user" in differences(sleeper, user="daemon" if os.geteuid() == 0 else "root")


def test_a_secret_variable_and_those_of_a_script_are_not_compared(sleeper: subprocess.Popen[bytes]) -> None:
    assert differences(sleeper, environment={}, secret=["A"]) == []
    assert differences(sleeper, environment={}, any_environment=True) == []


def test_a_process_that_a_signal_has_stopped(sleeper: subprocess.Popen[bytes]) -> None:
    sleeper.send_signal(signal.SIGSTOP)
    os.waitpid(sleeper.pid, os.WUNTRACED)
    assert differences(sleeper) == ["process state"]
    sleeper.send_signal(signal.SIGCONT)


def test_a_process_that_maps_a_file_which_was_replaced(tmp_path: Path) -> None:
    model = tmp_path / "model.gguf"
    model.write_bytes(b"x" * 4096)
    script = (
        f"import mmap, time; f = open({str(model)!r}, 'rb'); m = mmap.mmap(f.fileno(), 0, prot=mmap.PROT_READ); "
        "print(flush=True); time.sleep(600)"
    )
    command = [sys.executable, "-c", script]
    with subprocess.Popen(command, env={"A": "b"}, stdout=subprocess.PIPE) as process:
        assert process.stdout
        process.stdout.readline()
        assert differences(process, argv=command, data=[str(model)]) == []
        (tmp_path / "new").write_bytes(b"y" * 4096)
        (tmp_path / "new").replace(model)
        assert differences(process, argv=command, data=[str(model)]) == ["process files"]
        process.kill()


def account(tmp_path: Path, *, passwd: str = "", group: str = "", shadow: str = "", gshadow: str = "") -> list[str]:
    """What is wrong with the account r1prov-x."""
    (tmp_path / "passwd").write_text(
        "root:x:0:0::/root:/bin/bash\n" + (passwd or "r1prov-x:x:99:98::/nonexistent:/usr/sbin/nologin\n")
    )
    (tmp_path / "group").write_text(group or "root:x:0:\nsudo:x:27:alice\nr1prov-x:x:98:\n")
    (tmp_path / "gshadow").write_text(gshadow or "r1prov-x:!::\n")
    (tmp_path / "shadow").write_text(shadow or "root:*:1::::::\nr1prov-x:!:1::::::\n")
    return [
        each.kind.removeprefix("account ")
        for each in account_look.look("r1prov-x", account_look.read("r1prov-x", tmp_path), 99)
    ]


@pytest.mark.parametrize(
    ("files", "kinds"),
    [
        ({}, []),
        ({"passwd": "other:x:99:98::/:/bin/sh\n"}, []),
        ({"passwd": "r1prov-x:x:0:98::/nonexistent:/usr/sbin/nologin\n"}, ["uid"]),
        ({"passwd": "r1prov-x:x:97:98::/nonexistent:/usr/sbin/nologin\n"}, ["uid"]),
        ({"passwd": "r1prov-x:x:99:0::/nonexistent:/usr/sbin/nologin\n"}, ["group"]),
        ({"passwd": "r1prov-x:x:99:98::/root:/bin/bash\n"}, ["home", "shell"]),
        ({"passwd": "r1prov-x:x:99:98::/nonexistent:\n"}, ["shell"]),
        ({"group": "sudo:x:27:alice,r1prov-x\ndocker:x:28:r1prov-x\nr1prov-x:x:98:\n"}, ["groups"]),
        ({"group": "r1prov-x:x:98:mallory\n"}, ["members"]),
        ({"group": "r1prov-x:x:0:\n"}, ["group"]),
        ({"shadow": "r1prov-x:$6$a:1::::::\n"}, ["password"]),
        ({"shadow": "r1prov-x::1::::::\n"}, ["password"]),
        ({"shadow": "root:*:1::::::\n"}, ["password"]),
        ({"passwd": "r1prov-x::99:98::/nonexistent:/usr/sbin/nologin\n"}, ["password"]),
        ({"passwd": "r1prov-x:x7RwJ0hBsTIIg:99:98::/nonexistent:/usr/sbin/nologin\n"}, ["password"]),
        ({"gshadow": "r1prov-x:$6$a::\n"}, ["group password"]),
        ({"gshadow": "r1prov-x:!:mallory:\n"}, ["group password"]),
        ({"group": "r1prov-x:$6$a:98:\n"}, ["group password"]),
    ],
)
def test_an_account_of_a_service(tmp_path: Path, files: dict[str, str], kinds: list[str]) -> None:
    assert account(tmp_path, **files) == kinds


def test_an_account_with_the_same_number_is_seen(tmp_path: Path) -> None:
    account(tmp_path, passwd="r1prov-x:x:99:98::/nonexistent:/usr/sbin/nologin\nmallory:x:99:1::/:/bin/sh\n")
    assert account_look.read("r1prov-x", tmp_path).twins == ("mallory",)


def next_free(first: int, reserved: Collection[int] = ()) -> int:
    return next(number for number in range(first, 0, -1) if number not in reserved)


@pytest.fixture
def etc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of accounts, with programs that write to it, and with what is remembered of numbers."""
    for table in ("passwd", "group", "shadow", "gshadow"):
        (tmp_path / table).write_text("")

    def run(*command: str) -> None:
        name, options = command[-1], dict(itertools.pairwise(command))
        if "--user-group" in command or command[0] == "groupadd":
            with (tmp_path / "group").open("a") as file:
                file.write(f"{name}:x:{options['--gid'] if command[0] == 'groupadd' else '400'}:\n")
        if command[0] == "useradd":
            gid = account_look.read(name).own_gid
            with (tmp_path / "passwd").open("a") as file:
                file.write(f"{name}:x:{options.get('--uid', '300')}:{gid}::{account_look.HOME}:{account_look.SHELL}\n")
            with (tmp_path / "shadow").open("a") as file:
                file.write(f"{name}:!:1::::::\n")

    for module, first in ((service_account, 300), (shared_group, 400)):
        monkeypatch.setattr(module, "run", run)
        monkeypatch.setattr(module, "free", functools.partial(next_free, first))
    for name in ("read", "group", "others_have_uid", "others_have_gid"):
        monkeypatch.setattr(account_look, name, functools.partial(getattr(account_look, name), etc=tmp_path))
    for module in (account_look, service_account):
        for name in ("NUMBERS", "GROUP_NUMBERS"):
            monkeypatch.setattr(module, name, tmp_path / "state" / getattr(account_look, name).name)
    return tmp_path


def created(owns: Sequence[Path] = ()) -> tuple[int | None, int | None]:
    """Sees to an account. Returns the numbers of it and its group."""
    service_account.Seen("r1prov-x").put_right(list(owns))
    now = account_look.read("r1prov-x")
    return now.uid, now.own_gid


def lost(etc: Path, passwd: str = "", group: str = "") -> None:
    """A container was built anew: its accounts are those of its image. What is remembered lies elsewhere."""
    for table, text in (("passwd", passwd), ("group", group), ("shadow", "")):
        (etc / table).write_text(text)


def test_an_account_that_is_gone_comes_back_with_its_numbers(etc: Path) -> None:
    assert created() == (300, 400)
    for numbers, number in ((account_look.NUMBERS, 71), (account_look.GROUP_NUMBERS, 72)):
        account_look.remember("r1prov-x", number, numbers)
    lost(etc)
    (said,) = service_account.Seen("r1prov-x").found
    assert said.kind == "account"
    assert created() == (71, 72)
    assert service_account.Seen("r1prov-x").found == []


def test_a_number_that_somebody_else_has_now_is_left_to_them(etc: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What belonged to it goes over to the new number, and the look after that is quiet."""
    me = os.geteuid()
    account_look.remember("r1prov-x", me or 71, account_look.NUMBERS)
    account_look.remember("r1prov-x", 72, account_look.GROUP_NUMBERS)
    lost(etc, f"sshd:x:{me or 71}:1::/:/bin/sh\n", "ssh:x:72:\n")
    seen = service_account.Seen("r1prov-x")
    assert (seen.known_uid, seen.former_uid, seen.known_gid) == (None, me or 71, None)
    given: list[tuple[str, int]] = []
    monkeypatch.setattr(os, "chown", lambda name, uid, *_, **__: given.append((name, uid)))
    (etc / "models/m").mkdir(parents=True)
    (etc / "models/m/a.gguf").touch()
    give_over = service_account.give_over
    # The files here belong to whoever runs this test, which may be root.
    monkeypatch.setattr(service_account, "give_over", lambda folder, _, uid: give_over(folder, me, uid))
    assert created([etc / "models", etc / "none"]) == (300, 400)
    assert set(given) == {(".", 300), ("m", 300), ("a.gguf", 300)}
    seen = service_account.Seen("r1prov-x")
    assert (seen.found, seen.former_uid, seen.known_uid) == ([], None, 300)


def test_a_new_number_is_none_with_which_another_account_or_group_comes_back(etc: Path) -> None:
    for name, number in (("r1prov-x", 71), ("r1prov-later", 300), ("r1prov-last", 299)):
        account_look.remember(name, number, account_look.NUMBERS)
    account_look.remember("r1prov-later", 298, account_look.GROUP_NUMBERS)
    lost(etc, "squatter:x:71:1::/:/bin/sh\n")
    assert created()[0] == 297
    account_look.remember("people", 72, account_look.GROUP_NUMBERS)
    account_look.remember("others", 400, account_look.GROUP_NUMBERS)
    lost(etc, group="ssh:x:72:\n")
    shared_group.mend("people", "root", shared_group.look("people", "root", account_look.group("people")))
    assert account_look.group("people").gid == 399


def test_a_number_of_ours_that_an_account_has_twice_stays(etc: Path) -> None:
    assert created() == (300, 400)
    with (etc / "passwd").open("a") as file:
        file.write("mallory:x:300:1::/:/bin/sh\n")
    seen = service_account.Seen("r1prov-x")
    assert (seen.found, seen.former_uid, seen.twins) == ([], None, ("mallory",))


@pytest.mark.parametrize(("others", "gid"), [("", 72), ("ssh:x:72:\n", 400)])
def test_a_shared_group_that_is_gone_comes_back_with_its_number(etc: Path, others: str, gid: int) -> None:
    account_look.remember("people", 72, account_look.GROUP_NUMBERS)
    lost(etc, group=others)
    shared_group.mend("people", "root", shared_group.look("people", "root", account_look.group("people")))
    assert account_look.group("people").gid == gid


def test_folders_of_roots_that_others_may_write_to(tmp_path: Path) -> None:
    me = os.geteuid()
    if os.getegid() != me:
        pytest.skip("the group's number of whoever runs this is another than the user's")
    for folder in (
        "etc/r1prov/llama-server",
        "opt/r1prov/ollama/1/bin",
        "var/lib/r1prov/history",
        "var/lib/r1prov/open-webui",
        "usr/local/lib",
    ):
        (tmp_path / folder).mkdir(parents=True)
    for folder in tmp_path.rglob("*"):
        folder.chmod(0o755)
    for name in ("open-webui", "history"):
        (tmp_path / "var/lib/r1prov" / name).chmod(0o700)
    (tmp_path / "var/lib/r1prov/history/a.json").touch(0o600)
    (tmp_path / "etc/r1prov/llama-server/api-key").touch(0o600)
    assert place_look.look(tmp_path, me) == []
    (tmp_path / "etc/r1prov/llama-server/api-key").chmod(0o622)
    (tmp_path / "var/lib/r1prov/history/a.json").chmod(0o644)
    (tmp_path / "var/lib/r1prov/history").chmod(0o755)
    (tmp_path / "etc/r1prov").chmod(0o700)
    (tmp_path / "opt/r1prov/ollama").chmod(0o777)
    (tmp_path / "usr/local/lib/r1prov-door").touch()
    (tmp_path / "usr/local/lib/r1prov-door").chmod(0o4755)
    found = place_look.look(tmp_path, me)
    assert [(each.place.removeprefix(str(tmp_path)), each.expected.split()[1]) for each in found] == [
        ("/etc/r1prov", "0755"),
        ("/etc/r1prov/llama-server/api-key", "0600"),
        ("/opt/r1prov/ollama", "0755"),
        ("/usr/local/lib/r1prov-door", "0755"),
        ("/var/lib/r1prov/history", "0700"),
        ("/var/lib/r1prov/history/a.json", "0600"),
    ]
    place_look.mend(found)
    assert place_look.look(tmp_path, me) == []


@pytest.mark.parametrize(
    ("group", "gshadow", "kinds"),
    [
        ("people:x:98:anna", "people:!::anna", []),
        ("people:x:98:anna,bob", "people:*:bob:anna", []),
        ("people:x:98:bob", "people:!::bob", ["group member"]),
        ("people:x:0:anna", "people:!::anna", ["group number"]),
        ("people:x:98:anna\nothers:x:98:", "people:!::anna", ["group number"]),
        ("people:x:98:anna", "people:$6$a::anna", ["group password"]),
        ("others:x:98:anna", "", ["group"]),
    ],
)
def test_a_group_that_people_join(tmp_path: Path, group: str, gshadow: str, kinds: list[str]) -> None:
    (tmp_path / "group").write_text(f"root:x:0:\n{group}\n")
    (tmp_path / "gshadow").write_text(f"{gshadow}\n")
    # Root's own group has the number 0, too.
    found = shared_group.look("people", "anna", account_look.group("people", tmp_path))
    assert [each.kind for each in found] == kinds


def test_what_lies_in_the_place_of_a_file_goes(tmp_path: Path) -> None:
    """The program that measures is a folder, and stays."""
    me = os.geteuid()
    for folder in ("etc/r1prov/network", "usr/local/lib/r1prov-folder/x", "usr/local/lib/r1prov-measure/measuring"):
        (tmp_path / folder).mkdir(parents=True)
    for folder in tmp_path.rglob("*"):
        folder.chmod(0o755)
    (tmp_path / "etc/r1prov/network/r1prov-x.nft").mkdir()
    os.mkfifo(tmp_path / "etc/r1prov/pipe")
    (tmp_path / "usr/local/lib/r1prov-link").symlink_to("/bin/true")
    found = [each for each in place_look.look(tmp_path, me) if each.kind == "kind"]
    assert [Path(each.place).name for each in found] == ["r1prov-x.nft", "pipe", "r1prov-folder", "r1prov-link"]
    place_look.mend(found)
    assert not [each for each in place_look.look(tmp_path, me) if each.kind == "kind"]
    assert not [each for each in found if os.path.lexists(each.place)]


def test_the_program_that_runs_units_can_be_run_and_has_its_names(tmp_path: Path) -> None:
    me = os.geteuid()
    program = tmp_path / "usr/local/lib/r1prov-units"
    names = [tmp_path / "usr/local/bin/r1prov-units", program / "bin/systemctl"]
    for folder in (program / "supervised", program / "bin", tmp_path / "usr/local/bin"):
        folder.mkdir(parents=True)
    for file, mode in (("command.py", 0o755), ("supervised/verbs.py", 0o644), ("supervised/log.py", 0o644)):
        (program / file).touch()
        (program / file).chmod(mode)
    (tmp_path / "usr/local/lib/r1prov-await-ready").touch(0o755)
    for name in names:
        name.symlink_to(program / "command.py")
    (program / "supervised/__pycache__").mkdir(mode=0o700)  # supervisord has a umask of its own
    assert place_look.look(tmp_path, me) == []
    (program / "command.py").chmod(0)
    (program / "supervised/verbs.py").chmod(0o600)
    (program / "supervised/log.py").unlink()
    (program / "supervised/log.py").mkdir()
    (program / "bin").chmod(0o700)
    (tmp_path / "usr/local/lib/r1prov-await-ready").chmod(0o644)
    for name in names:
        name.unlink()
    names[0].mkdir()
    (names[0] / "something").touch()
    names[1].touch()
    found = place_look.look(tmp_path, me)
    assert [(each.place.removeprefix(f"{tmp_path}/usr/local/"), each.expected.split()[-1]) for each in found] == [
        ("bin/r1prov-units", "link"),
        ("lib/r1prov-await-ready", "0755"),
        ("lib/r1prov-units/bin", "0755"),
        ("lib/r1prov-units/bin/systemctl", "link"),
        ("lib/r1prov-units/command.py", "0755"),
        ("lib/r1prov-units/supervised/log.py", "file"),
        ("lib/r1prov-units/supervised/verbs.py", "0644"),
    ]
    place_look.mend(found)
    assert place_look.look(tmp_path, me) == []


def test_a_link_in_the_place_of_a_credential_becomes_what_it_led_to(tmp_path: Path) -> None:
    folder = tmp_path / "etc/r1prov/llama-server"
    folder.mkdir(parents=True)
    (tmp_path / "elsewhere").write_text("key")
    (tmp_path / "elsewhere").chmod(0o600)
    (folder / "api-key").symlink_to(tmp_path / "elsewhere")
    (folder / "lost").symlink_to(tmp_path / "nothing")
    (tmp_path / "moved").mkdir()
    (tmp_path / "moved" / "environment").write_text("KEY=1")
    (folder.parent / "open-webui").symlink_to(tmp_path / "moved")
    found = [each for each in place_look.look(tmp_path, os.geteuid()) if each.kind == "kind"]
    assert sorted(Path(each.place).name for each in found) == ["api-key", "lost", "open-webui"]
    place_look.mend(found)
    assert not (folder.parent / "open-webui").is_symlink()
    assert (folder.parent / "open-webui" / "environment").read_text() == "KEY=1"
    assert (tmp_path / "moved" / "environment").exists()
    assert [path.name for path in folder.iterdir()] == ["api-key"]
    assert not (folder / "api-key").is_symlink()
    assert (folder / "api-key").read_text() == "key"
    assert (folder / "api-key").stat().st_mode & 0o777 == 0o600


@pytest.fixture
def packaged(tmp_path: Path) -> Path:
    """A host with one package: a program, a link to it, its documentation and its configuration."""
    files = {"usr/bin/tool": b"program", "usr/share/doc/tool/readme": b"words", "etc/tool": b"conf"}
    info = tmp_path / "dpkg" / "info"
    info.mkdir(parents=True)
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(content)
    (tmp_path / "usr/bin/t").symlink_to("tool")
    sums = [f"{hashlib.md5(content, usedforsecurity=False).hexdigest()}  {name}\n" for name, content in files.items()]
    (info / "tool.md5sums").write_text("".join(sums))
    (info / "tool.list").write_text("".join(f"/{name}\n" for name in (*files, "usr/bin/t", "usr")))
    return tmp_path


def looked(root: Path, record: dict[str, list[int]]) -> tuple[list[str], dict[str, list[int]]]:
    found = package_look.look(["tool"], record, root / "dpkg", Path(f"{root}/"))
    return [each.sentence for each in found.differences.get("tool", [])], found.record


@pytest.mark.parametrize("known", [False, True])
@pytest.mark.parametrize(
    ("change", "says"),
    [
        ("rm usr/bin/tool", "is gone"),
        ("rm usr/bin/t", "/usr/bin/t of the package tool is gone"),
        ("rm usr/bin/tool; mkfifo usr/bin/tool", "has other bytes"),
        ("truncate -s 0 usr/bin/tool", "has other bytes"),
        (
            "touch -r usr/bin/tool t; printf X | dd of=usr/bin/tool conv=notrunc status=none; touch -r t usr/bin/tool",
            "has other bytes",
        ),
        ("rm -r usr/share/doc etc", ""),
    ],
)
def test_files_of_a_package(packaged: Path, change: str, says: str, known: bool) -> None:
    told, record = looked(packaged, {})
    assert told == []
    subprocess.run(["sh", "-ec", change], cwd=packaged, check=True)
    told, _ = looked(packaged, record if known else {})
    assert len(told) == bool(says)
    assert says in "".join(told)


def test_where_a_packaged_link_leads_is_known_from_the_last_look(packaged: Path) -> None:
    _, record = looked(packaged, {})
    (packaged / "usr/bin/t").unlink()
    (packaged / "usr/bin/t").symlink_to("/bin/true")
    assert looked(packaged, record)[0] == ["/usr/bin/t of the package tool leads to /bin/true, and led to tool"]
    os.utime(packaged / "dpkg/info/tool.list")  # Another version was installed.
    assert looked(packaged, record)[0] == []


def test_a_mode_of_a_packaged_file_is_known_from_the_last_look(packaged: Path) -> None:
    _, record = looked(packaged, {})
    (packaged / "usr/bin/tool").chmod(0o4777)
    assert " 4777, and had " in "".join(looked(packaged, record)[0])


@pytest.mark.parametrize(
    ("found", "says"),
    [
        ("", "are gone from the kernel"),
        ("a\nb\n", "have others, or have another order"),
        ("a\n", "lack `b`, unlike"),
        ("b\na\nc\n", "have `c`, unlike"),
    ],
)
def test_how_the_kernels_rules_differ_is_said(found: str, says: str) -> None:
    assert says in nft_rules.sentence("the table t", "b\na\n", found)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({}, ""),
        ({"flags": ["LOOPBACK"]}, "is down"),
        ({"addr_info": [{"local": "::1", "prefixlen": 128}]}, "lacks the address 127.0.0.1"),
        ({"qdisc": "netem"}, "delays or drops what it carries, by the queue netem"),
        ({"mtu": 1000}, "takes packets of 1000 bytes at most"),
    ],
)
def test_a_loopback_that_somebody_has_changed(change: dict[str, object], says: str) -> None:
    well = {"flags": ["LOOPBACK", "UP"], "mtu": 65536, "qdisc": "noqueue", "addr_info": [{"local": "127.0.0.1"}]}
    assert nft_rules.loopback_fault({**well, **change}) == says


def test_an_address_more_in_the_private_network(monkeypatch: pytest.MonkeyPatch) -> None:
    addresses = [
        {"local": name, "prefixlen": size} for name, size in (("127.0.0.1", 8), ("10.9.9.9", 24), ("::1", 128))
    ]
    loopback = {"ifname": "lo", "flags": ["UP"], "link_type": "loopback", "addr_info": addresses}
    monkeypatch.setattr(nft_rules, "links", lambda _: [loopback])
    assert nft_rules.wrong_addresses("r1prov") == {
        "10.9.9.9/24": "the network r1prov has the address 10.9.9.9/24, and should have nothing but a loopback"
    }
