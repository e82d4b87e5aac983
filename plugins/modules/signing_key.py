#!/usr/bin/python
"""Ansible module r1.prov.signing_key: the key of a package archive, by its fingerprint."""

from __future__ import annotations

DOCUMENTATION = r"""
module: signing_key
short_description: Brings the key that a package archive is signed with, if it is the right one
description:
  - Stock Ansible cannot do it, because C(get_url) compares a file with a digest, and a key file changes whenever its key is signed anew.
  - The file must hold exactly one key, and that must have the fingerprint. Otherwise nothing is written, and what lies there already is
    removed, as apt would trust it.
author: The r1prov team
extends_documentation_fragment: r1.prov.fetching
options: {
  "url": {"type": "str", "required": true, "description": "Where the key file is."},
  "path": {"type": "path", "required": true, "description": "Where apt finds it, without ASCII armour. Its name ends in C(.gpg)."},
  "fingerprint": {"type": "str", "required": true, "description": "The fingerprint of the key, 40 hex digits."}
  }
"""

EXAMPLES = r"""
- name: Bring NVIDIA's key
  r1.prov.signing_key:
    url: https://developer.download.nvidia.com/compute/cuda/repos/debian12/x86_64/3bf863cc.pub
    path: /etc/r1prov/apt/nvidia.gpg
    fingerprint: EB693B3035CD5710E231E123A4B469963BF863CC
"""

RETURN = r"""
fingerprint: {type: str, returned: success, description: The fingerprint of the key that lies at C(path).}
"""

from pathlib import Path

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.urls import open_url
from ansible_collections.r1.prov.plugins.module_utils import fetching
from ansible_collections.r1.prov.plugins.module_utils.arguments import arguments
from ansible_collections.r1.prov.plugins.module_utils.artefact import without_credentials
from ansible_collections.r1.prov.plugins.module_utils.files import write_whole
from ansible_collections.r1.prov.plugins.module_utils.openpgp import KeyFileError, binary, fingerprints

_MOST_BYTES = 1 << 20
_TIMEOUT_S = 60


def fault(packets: bytes, fingerprint: str) -> str:
    """Why the keys in a file are not the one that is wanted; empty where they are."""
    try:
        found = fingerprints(packets)
    except KeyFileError as error:
        return str(error)
    return "" if found == [fingerprint] else f"it holds the key {' and '.join(found)}"


def main() -> None:
    module = AnsibleModule(
        argument_spec=arguments(DOCUMENTATION) | {"environment": fetching.OPTION}, supports_check_mode=True
    )
    fetching.set_environment(module)
    url, path, fingerprint = module.params["url"], Path(module.params["path"]), module.params["fingerprint"]
    shown = without_credentials(url)
    if path.is_file() and not fault(path.read_bytes(), fingerprint) and path.stat().st_mode & 0o777 == 0o644:
        module.exit_json(changed=False, fingerprint=fingerprint)
    if not module.check_mode:
        path.unlink(missing_ok=True)
        try:
            # Written is what was read here, without the armour, which another program might read in another way.
            packets = binary(open_url(url, timeout=_TIMEOUT_S, http_agent="r1prov").read(_MOST_BYTES))
        except (OSError, ValueError, KeyFileError) as error:
            module.fail_json(msg=f"the key {shown} cannot be read: {getattr(error, 'reason', error)}.")
        if why := fault(packets, fingerprint):
            module.fail_json(
                msg=f"{shown} is not the key that is expected: {why}, where {fingerprint} alone is wanted. Nothing signed with it is "
                "installed. Whoever answers there is not the publisher, or the publisher has a new key: name another repository, or take a "
                "newer r1prov."
            )
        write_whole(path, packets)
    module.exit_json(changed=True, fingerprint=fingerprint, diff={"before": "", "after": f"{fingerprint}\n"})


if __name__ == "__main__":
    main()
