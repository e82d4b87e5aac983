"""Jinja filter r1.prov.password_weakness: why a password is too easy to guess, said before a host is changed."""

from __future__ import annotations

from typing import Any

from ansible.errors import AnsibleFilterError


def password_weakness(password: str, email: str) -> str:
    """Why the password of `email` cannot be used or is too easy to guess; empty where it is fine.

    Raises:
        AnsibleFilterError: the controller lacks the package that measures a password.
    """
    try:
        from ansible_collections.r1.prov.plugins.module_utils import password as judge  # noqa: PLC0415 - see below
    except ImportError as error:
        # Ansible would only say that there is no such filter, if this module itself could not be imported.
        raise AnsibleFilterError(
            f"The filter r1.prov.password_weakness needs a Python package that ansible-playbook cannot import here ({error})."
            " Remedy: `pip install zxcvbn` into the environment of ansible-playbook on this machine."
        ) from None
    return judge.password_weakness(password, email)


class FilterModule:
    """What Ansible looks for."""

    def filters(self) -> dict[str, Any]:
        """The filters by name."""
        return {"password_weakness": password_weakness}
