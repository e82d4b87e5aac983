"""Jinja filter r1.prov.password_weakness: why a password is too easy to guess, said before a host is changed."""

from __future__ import annotations

from ansible_collections.r1.prov.plugins.module_utils.password import password_weakness


class FilterModule:
    """What Ansible looks for."""

    def filters(self) -> dict:
        """The filters by name."""
        return {"password_weakness": password_weakness}
