"""Whether a password can be used, and not guessed: judged from its text alone, on the controller."""

from __future__ import annotations

import re

_SHORTEST = 12
_LONGEST_BYTES = 72  # what bcrypt takes; Open-WebUI makes no account with more
# Without all but letters and digits. Whatever is shorter is refused anyway.
_OBVIOUS = frozenset(
    [
        "password1234",
        "passwordpassword",
        "123456789012",
        "1234567890123",
        "12345678901234",
        "123456123456",
        "qwertyuiop12",
        "qwertyuiop123",
        "qwertyuiopasdf",
        "abcdefghijkl",
        "administrator",
        "administrator1",
        "adminpassword",
        "adminadminadmin",
        "changemechangeme",
        "pleasechangeme",
        "letmeinletmein",
        "iloveyou1234",
        "openwebuiadmin",
        "openwebuipassword",
        "correcthorsebatterystaple",
    ]
)


def password_weakness(password: str, email: str) -> str:
    """Why a password is too easy to guess, or none at all; empty where it is fine.

    Args:
        password: what is judged.
        email: the login that it belongs to.
    """
    if len(password) < _SHORTEST:
        return f"has fewer than {_SHORTEST} characters"
    if len(password.encode()) > _LONGEST_BYTES:
        return f"has more than {_LONGEST_BYTES} bytes"
    if re.sub(r"[^a-z0-9]", "", password.lower()) in _OBVIOUS:
        return "is a common phrase"
    if len(set(password)) < 5:
        return "has fewer than five different characters"
    return "is the email address" if password.lower() == email.lower() else ""
