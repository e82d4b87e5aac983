#!/usr/bin/python
"""Ansible module r1.prov.embeddings_probe: whether a server's embeddings mean something."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: embeddings_probe
short_description: Fails when related sentences are not nearer to each other than to others
description:
  - Asks a llama-server for the embeddings of three sentences and compares them. A model that was read wrongly answers too, but
    with vectors that mean nothing. Changes nothing.
options:
  url:
    description: Where the server answers, without a path.
    type: str
    required: true
  api_key_file:
    description: File on the host that holds the API key.
    type: path
    required: true
  margin:
    description: How much nearer the related ones must be, as a difference of cosines.
    type: float
    default: 0.1
author:
  - The r1prov team
"""

EXAMPLES = r"""
- name: See that related sentences are near each other
  r1.prov.embeddings_probe:
    url: http://127.0.0.1:8001
    api_key_file: /etc/r1prov/embeddings/api-key
"""

RETURN = r"""
related:
  description: Cosine of the related sentences.
  type: float
  returned: success
unrelated:
  description: The greater cosine of the others.
  type: float
  returned: success
"""

import math

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.r1.prov.plugins.module_utils.http_api import Api, ApiError

_SENTENCES = (
    "How do I reset my password?",
    "Steps to recover a forgotten login secret",
    "The glacier melts faster every summer.",
)


def cosine(one: list, other: list) -> float:
    """How alike two vectors are; 1 is the same direction."""
    product = sum(a * b for a, b in zip(one, other, strict=True))
    return product / (math.hypot(*one) * math.hypot(*other))


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "url": {"type": "str", "required": True},
            "api_key_file": {"type": "path", "required": True, "no_log": False},
            "margin": {"type": "float", "default": 0.1},
        },
        supports_check_mode=True,
    )
    if module.check_mode:
        module.exit_json(skipped=True, msg="nothing was started, so there is nothing to ask")
    try:
        answer = Api(module.params["url"], module.params["api_key_file"]).post(
            "/v1/embeddings", {"input": list(_SENTENCES)}
        )
        question, same, other = [entry["embedding"] for entry in answer["data"]]
        related, unrelated = cosine(question, same), max(cosine(question, other), cosine(same, other))
    except (ApiError, KeyError, TypeError, ValueError, ZeroDivisionError) as error:
        module.fail_json(
            msg=f"the server for embeddings gives none: {error}. Look at its log: journalctl -u r1prov-embeddings"
        )
    if related < unrelated + module.params["margin"]:
        module.fail_json(
            msg=f"the embeddings mean nothing: related sentences have a cosine of {related:.2f}, others of {unrelated:.2f}. "
            "Is the model in embeddings_source one for embeddings?"
        )
    module.exit_json(related=round(related, 3), unrelated=round(unrelated, 3))


if __name__ == "__main__":
    main()
