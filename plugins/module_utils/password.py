"""Whether a password can be used and is hard to guess. It is judged on the controller, which needs the package zxcvbn."""

from __future__ import annotations

import re

from zxcvbn import zxcvbn

_SHORTEST = 12
_LONGEST_BYTES = 72  # bcrypt takes no more, and Open-WebUI makes no account with more
_LOWEST_SCORE = 3  # zxcvbn's scale ends at 4, which means 10^10 tries or more; 3 means 10^8 or more
_TRIED_FIRST = ("r1prov", "open-webui", "openwebui", "deepseek", "correcthorsebatterystaple")


def password_weakness(password: str, email: str) -> str:
    """Why a password cannot be used or is too easy to guess, as the rest of a sentence; empty where it is fine.

    Args:
        password: what is judged.
        email: the login that it belongs to. Its parts are easy to guess.
    """
    if len(password) < _SHORTEST:
        return f"has fewer than {_SHORTEST} characters"
    if len(password.encode()) > _LONGEST_BYTES:
        return f"has more than {_LONGEST_BYTES} bytes"
    found = zxcvbn(password, user_inputs=[*_TRIED_FIRST, email, *re.split(r"\W+", email)])
    return f"is too easy to guess: {int(found['guesses']):,} tries find it" if found["score"] < _LOWEST_SCORE else ""
