"""Runs a program under the restrictions of the unit that need no systemd: the filter of system calls, no memory that is written and run.

    python3 confined.py RESTRICTIONS PROGRAM ARGUMENTS...

It knows x86-64 only, as r1prov does. Standard library only: it runs alone, also as what it confines (`--probe` tells whether it holds).
"""

from __future__ import annotations

import ctypes
import errno
import json
import mmap
import os
import resource
import struct
import sys
from pathlib import Path

APPLIED = (
    "NoNewPrivileges",
    "CapabilityBoundingSet",
    "MemoryDenyWriteExecute",
    "SystemCallArchitectures",
    "SystemCallFilter",
    "SystemCallErrorNumber",
    "LimitCORE",
    "UMask",
)
"""The directives whose effect this program has; as root, also that of the capabilities."""

_NO_NEW_PRIVS, _SECCOMP, _DROP_CAPABILITY, _FILTER = 38, 22, 24, 2
_X86_64 = 0xC000003E
_ALLOW, _DENY, _KILL = 0x7FFF0000, 0x00050000 | errno.EPERM, 0x80000000
_LOAD, _EQUAL, _AND, _RETURN = 0x20, 0x15, 0x54, 0x06  # of classic BPF, on 32 bits
_NUMBER, _ARCHITECTURE, _THIRD = 0, 4, 32  # places in struct seccomp_data; the third argument's lower half
_MMAP, _MPROTECT, _SHMAT, _PKEY_MPROTECT, _KEYCTL = 9, 10, 30, 329, 250
_WRITE, _EXECUTE, _SHM_EXECUTE = 2, 4, 0o100000

Instruction = tuple[int, int, int, int]


def without_writable_code() -> list[Instruction]:
    """The filter that MemoryDenyWriteExecute is."""
    rules = ((_MMAP, _WRITE | _EXECUTE), (_MPROTECT, _EXECUTE), (_PKEY_MPROTECT, _EXECUTE), (_SHMAT, _SHM_EXECUTE))
    found: list[Instruction] = []
    for call, bits in rules:
        found += [
            (_LOAD, 0, 0, _NUMBER),
            (_EQUAL, 0, 4, call),
            (_LOAD, 0, 0, _THIRD),
            (_AND, 0, 0, bits),
            (_EQUAL, 0, 1, bits),
            (_RETURN, 0, 0, _DENY),
        ]
    return [*found, (_RETURN, 0, 0, _ALLOW)]


def only(calls: list[int]) -> list[Instruction]:
    """The filter that allows these system calls alone."""
    found = [(_LOAD, 0, 0, _ARCHITECTURE), (_EQUAL, 1, 0, _X86_64), (_RETURN, 0, 0, _KILL), (_LOAD, 0, 0, _NUMBER)]
    for call in calls:
        found += [(_EQUAL, 0, 1, call), (_RETURN, 0, 0, _ALLOW)]
    return [*found, (_RETURN, 0, 0, _DENY)]


def confine(restrictions: dict) -> None:  # type: ignore[type-arg]
    """Confines this process and all that it becomes.

    Raises:
        OSError: The kernel refuses.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    os.umask(0o077)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if os.geteuid() == 0:
        last = int(Path("/proc/sys/kernel/cap_last_cap").read_text())
        for capability in range(last + 1):
            _call(libc, _DROP_CAPABILITY, capability)
    _call(libc, _NO_NEW_PRIVS, 1)
    filters = [without_writable_code()]
    if restrictions["system_calls"]:
        filters.append(only(restrictions["system_calls"]))
    for instructions in filters:
        code = ctypes.create_string_buffer(b"".join(struct.pack("<HBBI", *each) for each in instructions))
        program = struct.pack("<HxxxxxxQ", len(instructions), ctypes.addressof(code))
        _call(libc, _SECCOMP, _FILTER, ctypes.create_string_buffer(program))


def probe() -> dict[str, bool]:
    """Whether what must be refused is refused."""
    libc = ctypes.CDLL(None, use_errno=True)
    try:
        mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC).close()
        refused = False
    except PermissionError:
        refused = True
    # The thread's keyring, by its number: an unconfined process gets it, or is told that there is none.
    keyring = libc.syscall(_KEYCTL, 0, -1, 0) == -1 and ctypes.get_errno() == errno.EPERM
    return {"MemoryDenyWriteExecute": refused, "SystemCallFilter": keyring}


def _call(libc: ctypes.CDLL, *words: object) -> None:
    if libc.prctl(*words, 0, 0, 0):
        raise OSError(ctypes.get_errno(), f"prctl {words[0]}: {os.strerror(ctypes.get_errno())}")


if __name__ == "__main__":
    if sys.argv[1] == "--probe":
        sys.stdout.write(json.dumps(probe()) + "\n")
    else:
        confine(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))
        os.execvp(sys.argv[2], sys.argv[2:])
