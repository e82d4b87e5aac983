"""Tests of how versions of hosts are compared and told."""

from __future__ import annotations

import pytest

from r1prov.site import TESTED_OLLAMA, load, versions


@pytest.mark.parametrize(
    ("before", "after", "told"),
    [
        ("0.3.36", "0.3.37", "upgrade of llama.cpp from 0.3.36 to 0.3.37"),
        ("0.3.9", "0.3.10", "upgrade of llama.cpp from 0.3.9 to 0.3.10"),
        ("0.3.37", "0.3.36", "downgrade of llama.cpp from 0.3.37 to 0.3.36"),
        ("0.3.37", "0.3.37rc1", "downgrade of llama.cpp from 0.3.37 to 0.3.37rc1"),
        ("b999", "b11312", "upgrade of llama.cpp from b999 to b11312"),
        ("b11312", "b999", "downgrade of llama.cpp from b11312 to b999"),
        ("b11312", "0.3.36", "llama.cpp from b11312 to 0.3.36"),
        ("a" * 40, "1" * 40, f"llama.cpp from {'a' * 40} to {'1' * 40}"),
        ("2" * 40, "1" * 40, f"llama.cpp from {'2' * 40} to {'1' * 40}"),
        ("ours", "theirs", "llama.cpp from ours to theirs"),
    ],
)
def test_a_downgrade_is_called_one_where_the_order_is_known(before: str, after: str, told: str) -> None:
    assert versions.moves({"llama_cpp": before}, {"llama_cpp": after}) == [told]


def test_what_stays_is_no_move_and_what_the_site_has_no_more_neither() -> None:
    assert versions.moves({"llama_cpp": "1", "ollama": "2"}, {"llama_cpp": "1", "open_webui": "3"}) == []


def test_versions_are_read_from_the_names_of_releases() -> None:
    digest = "0123456789ab"
    names = {"llama.cpp": f"0.3.36-cpu-{digest}", "ollama": f"0.12.11-{digest}", "open-webui": None}
    assert versions.installed(names) == {"llama_cpp": "0.3.36", "ollama": "0.12.11", "open_webui": None}
    assert versions.installed({"llama.cpp": f"my-label-cuda-{digest}"})["llama_cpp"] == "my-label"


CASES = {
    "as the site has it": ("", TESTED_OLLAMA, "", ""),
    "chosen": ("9.9.9", "9.9.9", "Ollama 9.9.9 (site HAS)", "keeps Ollama 9.9.9, which was chosen for it; the site has HAS"),
    "not brought yet": ("", "9.9.9", "Ollama 9.9.9 (wanted HAS)", "has Ollama 9.9.9; `r1prov up` brings HAS"),
    "chosen, and not there": (
        "9.9.9",
        TESTED_OLLAMA,
        "Ollama HAS (wanted 9.9.9)",
        "has Ollama HAS; `r1prov up` brings 9.9.9, which was chosen for it; the site has HAS",
    ),
    "missing": ("", None, "Ollama missing (wanted HAS)", "has no Ollama; `r1prov up` brings HAS"),
}  # fmt: skip


@pytest.mark.parametrize(("chosen", "there", "short", "words"), CASES.values(), ids=CASES)
def test_a_difference_is_told(chosen: str, there: str | None, short: str, words: str) -> None:
    site = load(None, profile="cpu", hosts=["gpu1"])
    if chosen:
        site = site.model_copy(update={"chosen": {"gpu1": {"ollama": chosen}}})
    usual = versions.of(site, "another")
    found = versions.differences(site, "gpu1", {**usual, "ollama": there})
    assert versions.in_short(found) == short.replace("HAS", TESTED_OLLAMA)
    assert versions.in_words(found) == [words.replace("HAS", TESTED_OLLAMA)] * bool(words)
