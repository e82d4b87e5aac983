"""The documentation of the option `remedies`."""

from __future__ import annotations


class ModuleDocFragment:
    """What `extends_documentation_fragment: r1.prov.remedies` adds."""

    DOCUMENTATION = r"""
options:
  remedies:
    description: What to say when a program fails. The first remedy whose pattern is found in the program's words is shown.
    type: list
    elements: dict
    default: []
    suboptions:
      pattern:
        description: Regular expression.
        type: str
        required: true
      remedy:
        description: What to do next.
        type: str
        required: true
"""
