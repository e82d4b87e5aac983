"""How git is told a login that stands in an address: never on a command line, which everybody on the machine can read."""

from __future__ import annotations

import urllib.parse

# git calls it for the one server that the setting names, also after a redirect to another.
_HELPER = '!f() { printf "username=%s\\npassword=%s\\n" "$R1PROV_GIT_USER" "$R1PROV_GIT_PASSWORD"; }; f'


def remote(url: str) -> tuple[str, dict[str, str]]:
    """The address of a repository without the login of a web server, and the variables in which git finds it."""
    variables = {"GIT_TERMINAL_PROMPT": "0"}
    parts = urllib.parse.urlsplit(url)
    login, _, host = parts.netloc.rpartition("@")
    if parts.scheme not in ("http", "https") or not login:
        return url, variables
    user, _, password = login.partition(":")
    helper = f"credential.{parts.scheme}://{host}.helper"
    variables |= {
        "R1PROV_GIT_USER": urllib.parse.unquote(user),
        "R1PROV_GIT_PASSWORD": urllib.parse.unquote(password),
        "GIT_CONFIG_COUNT": "2",
        "GIT_CONFIG_KEY_0": helper,
        "GIT_CONFIG_VALUE_0": "",  # Nobody else's helper is asked, or told what to remember.
        "GIT_CONFIG_KEY_1": helper,
        "GIT_CONFIG_VALUE_1": _HELPER,
    }
    return parts._replace(netloc=host).geturl(), variables
