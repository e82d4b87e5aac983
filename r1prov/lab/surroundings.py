"""What a throwaway host must be told to reach the package registries as this machine does: proxies, index, authorities."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

_LOCAL_AUTHORITIES = Path("/usr/local/share/ca-certificates")


def sources() -> dict[str, Any]:
    """The `sources` section of a site file for hosts behind this machine. Empty keys where nothing is special here."""
    proxy = {
        key: os.environ.get(variable) or os.environ.get(variable.upper(), "")
        for key, variable in (("http", "http_proxy"), ("https", "https_proxy"), ("none_for", "no_proxy"))
    }
    found: dict[str, Any] = {
        "proxy": proxy if any(proxy.values()) else None,
        "pypi": {"index": index} if (index := _pip_index()) else None,
        "ca_certificates": sorted(
            # Not those that an `r1prov up` of this machine itself has put there.
            str(path)
            for path in _LOCAL_AUTHORITIES.rglob("*.crt")
            if not path.name.startswith("r1prov-")
        ),
    }
    return {key: value for key, value in found.items() if value}


def _pip_index() -> str:
    """The index that pip is set to here, by environment or configuration file; empty for its own default."""
    asked = subprocess.run(
        [sys.executable, "-m", "pip", "config", "get", "global.index-url"], capture_output=True, text=True, check=False
    )
    return os.environ.get("PIP_INDEX_URL") or asked.stdout.strip()
