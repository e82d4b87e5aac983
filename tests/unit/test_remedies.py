"""Tests of what the role llama_server tells to do about the engine's words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jinja2
import pytest
import yaml
from ansible_collections.r1.prov.plugins.module_utils import remedies

VARS = Path(__file__).parents[2] / "roles/llama_server/vars/main.yml"
NO_CARD = "warning: no usable GPU found, --gpu-layers option will be ignored\n"
NO_MODEL = "terminate called after throwing an instance of 'std::runtime_error'\n  what():  failed to load model\n"


def known(*, gpu: bool) -> list[dict[str, Any]]:
    values = {"llama_server_gpu": gpu, "llama_server_model": "/srv/m.gguf", "llama_server_release": "/opt/r"}
    rows = yaml.safe_load(VARS.read_text())["__llama_server_remedies"]
    return [{key: jinja2.Template(text).render(values) for key, text in row.items()} for row in rows]


@pytest.mark.parametrize(
    ("gpu", "words", "remedy"),
    [
        (False, NO_CARD + NO_MODEL, "the model cannot be loaded"),
        (True, NO_CARD + NO_MODEL, "the NVIDIA driver does not work with this build"),
        (True, NO_MODEL, "the model cannot be loaded"),
        (False, NO_CARD + "gguf_init: failed to read key-value pairs\n" + NO_MODEL, "the model's files are damaged"),
        (False, NO_CARD, ""),
    ],
)
def test_a_driver_is_blamed_only_where_the_host_has_cards(gpu: bool, words: str, remedy: str) -> None:
    assert remedies.first(words, known(gpu=gpu)).startswith(remedy)
    assert bool(remedies.first(words, known(gpu=gpu))) == bool(remedy)
