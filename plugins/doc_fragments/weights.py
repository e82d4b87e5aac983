"""What the modules that work on a model's folder say of it, once."""

from __future__ import annotations


class ModuleDocFragment:
    """For `extends_documentation_fragment: r1.prov.weights`."""

    DOCUMENTATION = r"""
options:
  path:
    description: The model's folder.
    type: path
    required: true
  owner:
    description: The user whose folder it is.
    type: str
    required: true
  files:
    description: The published files, in order.
    type: list
    elements: dict
    required: true
    suboptions:
      name:
        description: Its name.
        type: str
        required: true
      bytes:
        description: Its size.
        type: int
        required: true
      sha256:
        description: The digest of its content.
        type: str
        required: true
"""
