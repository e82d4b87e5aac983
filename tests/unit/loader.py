"""Reads what Ansible reads."""

from __future__ import annotations

import yaml


class Loader(yaml.SafeLoader):
    """A YAML loader that knows Ansible's tag for texts that are not templates."""


Loader.add_constructor("!unsafe", lambda loader, node: loader.construct_scalar(node))
