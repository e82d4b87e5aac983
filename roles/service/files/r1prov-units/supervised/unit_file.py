"""Reads a unit file: what of it a keeper obeys, and what is lost where systemd does not run it."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

PROGRAM = Path(__file__).resolve().parent.parent / "command.py"
FOLDER = Path("/etc/systemd/system")

_OBEYED = """
    After AmbientCapabilities AssertFileNotEmpty CapabilityBoundingSet ConditionPathExists Conflicts Description Environment
    EnvironmentFile ExecReload ExecStart ExecStartPost ExecStartPre ExecStopPost Group LimitCORE LimitMEMLOCK
    LimitNOFILE LoadCredential Nice NoNewPrivileges OOMScoreAdjust OnActiveSec OnUnitInactiveSec
    RandomizedDelaySec RemainAfterExit Requires Restart RestartPreventExitStatus RestartSec RuntimeDirectory
    RuntimeDirectoryPreserve StartLimitBurst StartLimitIntervalSec StateDirectory StateDirectoryMode
    SupplementaryGroups TimeoutStartSec TimeoutStopSec Type UMask User WantedBy
"""
LOST = {
    "the service sees the files of the whole host, as its user may": (
        "ProtectSystem ProtectHome TemporaryFileSystem PrivateTmp BindPaths BindReadOnlyPaths ReadOnlyPaths ReadWritePaths"
    ),
    "the service may run what it has written": "NoExecPaths MemoryDenyWriteExecute",
    "the service sees all devices that the container has": "DeviceAllow DevicePolicy PrivateDevices",
    "the service sees the processes of others": "ProtectProc ProcSubset",
    "the service may make all system calls that the container may make": (
        "LockPersonality RestrictNamespaces RestrictRealtime RestrictSUIDSGID SystemCallArchitectures "
        "SystemCallErrorNumber SystemCallFilter"
    ),
    "the kernel's settings are kept from the service by the container and by file modes alone": (
        "ProtectClock ProtectControlGroups ProtectHostname ProtectKernelLogs ProtectKernelModules ProtectKernelTunables"
    ),
    "the service shares users, keys and shared memory with the host": "KeyringMode PrivateIPC PrivateUsers RemoveIPC",
    "the service is in the network of the host, and users of the host reach its port": (
        "IPAddressAllow IPAddressDeny NetworkNamespacePath PrivateNetwork RestrictAddressFamilies"
    ),
    "the service may take all memory and start as many processes as the container may": (
        "MemoryMax MemorySwapMax TasksMax"
    ),
    "kernel modules are a matter of the platform, and no network has to be awaited": "Wants",
    "the log has the name of the unit": "SyslogIdentifier",
    "a service for idle hours has a low priority, and no more": "CPUSchedulingPolicy IOSchedulingClass",
}
"""What a service does not have that systemd would give it, and by which settings systemd would."""

_FOR_PEOPLE = re.compile(r"X-\w+")
_WORD = re.compile(r"""\"(?:[^"\\]|\\.)*\"|'(?:[^'\\]|\\.)*'|\S+""")
_SECONDS = {"": 1, "s": 1, "sec": 1, "min": 60, "m": 60, "h": 3600, "d": 86400}


class UnitFileError(Exception):
    """A unit file cannot be read, or asks for what nobody knows."""


@dataclass(frozen=True)
class Command:
    """A command of a unit.

    Attributes:
        argv: its words. `$MAINPID` and `${CREDENTIALS_DIRECTORY}` are replaced when it runs.
        may_fail: whether its exit code is ignored. Before and after the service's own program it may even be missing.
        as_root: whether root runs it, whoever the unit's user is.
    """

    argv: list[str]
    may_fail: bool
    as_root: bool


@dataclass(frozen=True)
class Unit:
    """A unit file. Settings that have no attribute here are read with `text`, `texts`, `seconds` and `commands`."""

    name: str
    settings: dict[str, list[str]] = field(default_factory=dict)

    def text(self, key: str, default: str = "") -> str:
        """The value of a setting. The last one counts."""
        return _unescaped(self.settings.get(key, [default])[-1])

    def texts(self, key: str) -> list[str]:
        """The words of a setting that is a list. It may come several times."""
        return [_plain(word) for value in self.settings.get(key, []) for word in _WORD.findall(value)]

    def is_true(self, key: str) -> bool:
        """Whether a setting says yes."""
        return self.text(key) in ("yes", "true", "on", "1")

    def seconds(self, key: str, default: float) -> float:
        """A length of time in seconds."""
        value = self.text(key)
        if not value:
            return default
        if value == "infinity":
            return float("inf")
        found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([a-z]*)", value)
        if not found or found[2] not in _SECONDS:
            raise UnitFileError(f"{self.name}: {key}={value} is no length of time that is known here")
        return float(found[1]) * _SECONDS[found[2]]

    def commands(self, key: str) -> list[Command]:
        """The commands of a setting, in their order."""
        return [_command(value) for value in self.settings.get(key, [])]

    @property
    def environment(self) -> dict[str, str]:
        """The variables that `Environment` sets."""
        return dict(word.split("=", 1) for word in self.texts("Environment"))

    @property
    def is_timer(self) -> bool:
        """Whether it starts another unit now and then."""
        return self.name.endswith(".timer")


def path_of(name: str) -> Path:
    """Where the file of a unit lies."""
    return FOLDER / name


def full(name: str) -> str:
    """The name of a unit with its type, as systemctl takes it without."""
    return name if re.search(r"\.(service|timer|socket|target)$", name) else f"{name}.service"


def load(name: str) -> Unit:
    """Reads a unit's file.

    Raises:
        UnitFileError: it is not there, or has a setting that is neither obeyed nor known to be lost.
    """
    try:
        text = path_of(name).read_text(encoding="utf-8")
    except OSError as error:
        raise UnitFileError(f"Unit {name} not found: {error.strerror}.") from error
    return parse(name, text)


def parse(name: str, text: str) -> Unit:
    """A unit of the text of its file.

    Raises:
        UnitFileError: it has a setting that is neither obeyed nor known to be lost.
    """
    settings: dict[str, list[str]] = {}
    joined = re.sub(r"^[ \t]*[#;].*\n", "", text, flags=re.MULTILINE).replace("\\\n", " ")
    for line in joined.splitlines():
        key, equals, value = (part.strip() for part in line.partition("="))
        if not equals or _FOR_PEOPLE.fullmatch(key):
            continue
        if not value:
            settings.pop(key, None)
            continue
        settings.setdefault(key, []).append(value)
    lost = {key for keys in LOST.values() for key in keys.split()}
    if strange := sorted(settings.keys() - set(_OBEYED.split()) - lost):
        raise UnitFileError(f"{name}: nobody knows here what {', '.join(strange)} would do")
    return Unit(name, settings)


def _command(value: str) -> Command:
    marks = re.match(r"[-+@:!]*", value)
    prefix = marks[0] if marks else ""
    argv = [_plain(word) for word in _WORD.findall(value[len(prefix) :])]
    return Command(argv, may_fail="-" in prefix, as_root="+" in prefix)


def expanded(word: str, variables: dict[str, str]) -> str:
    """A word of a command with `$NAME` and `${NAME}` replaced. `$$` stands for `$`."""
    return re.sub(
        r"\$(?:(\$)|\{(\w+)\}|(\w+))", lambda found: found[1] or variables.get(found[2] or found[3] or "", ""), word
    )


def _plain(word: str) -> str:
    """A word without its quotes."""
    if len(word) > 1 and word[0] == word[-1] and word[0] in "\"'":
        word = re.sub(r"\\(.)", lambda found: {"n": "\n", "t": "\t"}.get(found[1], found[1]), word[1:-1])
    return _unescaped(word)


def _unescaped(text: str) -> str:
    return text.replace("%%", "%")


def environment_file(text: str) -> dict[str, str]:
    """The variables in the text of an `EnvironmentFile`, in which nothing is expanded."""
    found = {}
    for each in re.finditer(r'^(\w+)=(?:"((?:[^"\\]|\\.)*)"|(.*))$', text, re.MULTILINE | re.DOTALL):
        quoted, bare = each[2], each[3]
        found[each[1]] = re.sub(r"\\(.)", r"\1", quoted) if quoted is not None else bare.strip()
    return found
