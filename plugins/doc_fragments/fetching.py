"""The documentation of the option `environment`."""

from __future__ import annotations


class ModuleDocFragment:
    """What `extends_documentation_fragment: r1.prov.fetching` adds."""

    DOCUMENTATION = r"""
options:
  environment:
    description:
      - Environment variables, such as C(https_proxy) and C(PIP_INDEX_URL), for what the module fetches.
      - The keyword C(environment) of a task does the same, but puts them on command lines, where every user can read them.
    type: dict
    default: {}
"""
