"""Says of a secret whether a host still has it, without telling the secret.

A run hands modules secrets as they are. Whoever looks at a host later, without Ansible, hands them digests of these secrets instead.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
from typing import Any

_MARK = "r1prov-digest"


def digest(value: Any) -> str:
    """A salted digest of a secret, which `same` compares. A value that is no text counts as its JSON."""
    salt = os.urandom(16).hex()
    return f"{_MARK}:{salt}:{_hash(value, salt)}"


def is_digest(value: Any) -> bool:
    """Whether a value is a digest."""
    return isinstance(value, str) and value.startswith(f"{_MARK}:")


def same(found: Any, wanted: Any) -> bool:
    """Whether what a host has is what is wanted, which is the value itself or a digest of it."""
    if not is_digest(wanted):
        return bool(found == wanted)
    _, salt, expected = str(wanted).split(":")
    return hmac.compare_digest(expected, _hash(found, salt))


def without_secrets(parameters: dict[str, Any], spec: dict[str, Any]) -> dict[str, Any]:
    """The parameters of a module, with a digest in the place of each secret. In a dictionary of secrets each value is one.

    Args:
        parameters: the parameters.
        spec: the module's argument spec. Its options with `no_log` are the secrets.
    """
    return {name: _hidden(value) if spec.get(name, {}).get("no_log") else value for name, value in parameters.items()}


def _hidden(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: digest(part) for name, part in value.items()}
    return digest(value) if value else value


def _hash(value: Any, salt: str) -> str:
    text = value if isinstance(value, str) else json.dumps(value, sort_keys=True)
    return hashlib.sha256(f"{salt}{text}".encode()).hexdigest()
