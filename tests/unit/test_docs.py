"""Tests that the docs agree with the code: the generated pages, every command, every printed plan, and every link of the README."""

from __future__ import annotations

import os
import re
import runpy
import shlex
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from benchmarks import plan
from r1prov.cli import main
from r1prov.cli.verbs import VERBS, command
from r1prov.common.units import GB, MIB
from r1prov.machines.known import Known, MeasuredSpeed
from r1prov.machines.profile import Link
from r1prov.machines.tuned import Hardware
from r1prov.output import console
from r1prov.site.state import SiteState

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).resolve().parents[2]
GENERATED = runpy.run_path(str(ROOT / "docs" / "generate.py"))["pages"]()
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
CALCULATING = ("plan", "explain", "profiles", "sources", "by-hand")
"""The verbs that need no host for their output."""
WIDTH = 80
CODE = re.compile(r"^(?:```.*?^```$|(?: {4}[^\n]*\n)+)", flags=re.MULTILINE | re.DOTALL)
"""Matches a block of code that is fenced, or indented by four spaces."""
CUT = "[...]"
"""The mark with which the docs leave out lines of an output."""


def names(pages: list[Path]) -> list[str]:
    return [str(page.relative_to(ROOT)) for page in pages]


@pytest.mark.parametrize("page", GENERATED, ids=lambda path: path.name)
def test_a_generated_page_is_up_to_date(page: Path) -> None:
    assert page.read_text() == GENERATED[page], "run `make docs`"


def test_every_key_of_the_site_file_is_described() -> None:
    rows = [line for line in (ROOT / "docs" / "site.md").read_text().splitlines() if line.startswith("| `")]
    assert len(rows) > 50
    assert [row for row in rows if row.endswith("|  |")] == []


def test_every_option_is_described() -> None:
    rows = [line for line in (ROOT / "docs" / "cli.md").read_text().splitlines() if line.startswith("| `-")]
    assert len(rows) > 100
    assert [row for row in rows if row.endswith("|  |")] == []


def test_the_table_of_what_a_token_reads_is_what_the_benchmark_prints() -> None:
    assert plan.table() in (ROOT / "docs" / "evidence" / "memory.md").read_text(), "run `python -m benchmarks.plan`"


def commands(text: str) -> Iterator[str]:
    """The commands that call r1prov in the code blocks of a page and between its backticks."""
    for block in CODE.findall(text):
        for line in block.splitlines():
            yield from re.findall(r"(?:^\s*(?:\$ )?|&& )(r1prov [^#\n&]+)", line)
    for span in re.findall(r"`([^`]+)`", CODE.sub("", text)):
        yield from re.findall(r"^r1prov .+", span.replace("\n", " "))


def fault(line: str) -> str:
    """The mistake in a command, which is a verb or an option that does not exist; an empty text for a correct command."""
    words = shlex.split(line)[1:]
    words = words[: words.index("--")] if "--" in words else words
    while words and words[0] in {"--debug", "--help", "--version"}:
        del words[0]
    if not words or not re.fullmatch(r"[a-z][a-z-]*", words[0]):
        return ""
    if words[0] not in VERBS:
        return f"{words[0]} is no verb"
    found: Any = command(words.pop(0))
    if inner := getattr(found, "commands", None):
        if not words:
            return ""
        if words[0] not in inner:
            return f"{words[0]} is no verb"
        found = inner[words.pop(0)]
    known = {name for parameter in found.params for name in parameter.opts} | {"--help"}
    return ", ".join(
        f"{word} is no option" for word in words if word.startswith("-") and word != "-" and word not in known
    )


@pytest.mark.parametrize("page", PAGES, ids=names(PAGES))
def test_every_command_exists(page: Path) -> None:
    faults = {line: fault(line) for line in commands(page.read_text())}
    assert {line: what for line, what in faults.items() if what} == {}


def test_the_commands_are_found_and_faults_are_seen() -> None:
    assert sum(len(list(commands(page.read_text()))) for page in PAGES) > 100
    text = "Say `r1prov fly` or\n\n    cd x && r1prov up --fast gpu1   # r1prov no\n\n```console\n$ r1prov secrets burn\n```\n"
    assert [fault(line) for line in commands(text)] == ["--fast is no option", "burn is no verb", "fly is no verb"]


def printed() -> Iterator[tuple[str, str, str]]:
    """The page, the command and the output of every block that shows the output of a calculating verb."""
    for page in PAGES:
        for block in re.findall(r"^```console\n\$ (r1prov .*?)^```$", page.read_text(), flags=re.MULTILINE | re.DOTALL):
            line, _, shown = block.partition("\n")
            if line.split()[1] in CALCULATING or re.match("r1prov bench --modes .* --check", line):
                yield str(page.relative_to(ROOT)), line, shown


BY = {"by": "r1prov bench --modes", "model": "UD-IQ1_S", "measured": "2026-11-29T04:36:35+00:00"}
MEASURED = Known(
    hardware=Hardware(cpu="Xeon", cores=64, threads=64, ram=480 * GB, cards=(("RTX 4090", 24564 * MIB),) * 4),
    link=Link(generation=3, width=8),
    measured={
        "ram_bytes_per_second": MeasuredSpeed(low=50.0e9, high=55.4e9, **BY),
        "card_bytes_per_second": MeasuredSpeed(low=538e9, high=764e9, **BY),
        "link_bytes_per_second": MeasuredSpeed(low=5.27e9, high=5.76e9, **BY),
    },
)
"""What a page shows of a host where speeds were measured."""


@pytest.mark.parametrize(("page", "line", "shown"), list(printed()))
def test_an_output_in_the_pages_is_what_is_printed(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    page: str,
    line: str,
    shown: str,
) -> None:
    monkeypatch.setattr(console.out, "width", WIDTH)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "r1prov.yml").write_text("profile: 4x4090\nhosts: [{name: gpu1, address: gpu1.example.com}]\n")
    if "--host" in line:
        SiteState.of(tmp_path / "r1prov.yml").keep_known("gpu1", MEASURED)
    with pytest.raises(SystemExit):
        main(shlex.split(line)[1:])
    real = "".join(f"{row.rstrip()}\n" for row in capsys.readouterr().out.splitlines())
    for part in filter(None, shown.split(f"{CUT}\n")):
        assert part in real, f"{page}: {line}"
        real = real.partition(part)[2]


def test_the_rates_of_the_quants_are_those_of_plan(capsys: pytest.CaptureFixture[str]) -> None:
    rows = re.findall(
        r"^\| (\S+)(?: \(.*?\))? \| ([\d.]+) \| ([\d.]+ to [\d.]+) \| ([\d.]+ to [\d.]+) \|$",
        (ROOT / "docs" / "hardware.md").read_text(),
        flags=re.MULTILINE,
    )
    assert len(rows) == 5
    for quant, _, *rates in (rows[0], rows[-1]):  # only two rows, because a plan takes most of a second
        for profile, rate in zip(("4x4090", "4xh800"), rates, strict=True):
            with pytest.raises(SystemExit):
                main(["plan", "--profile", profile, "--quant", quant])
            assert f"Decoding: {rate} tokens/s" in capsys.readouterr().out, (quant, profile)


def test_the_site_builds_and_none_of_its_links_is_broken(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", tmp_path],
        cwd=ROOT, env=os.environ | {"NO_MKDOCS_2_WARNING": "1"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    elsewhere = r'<(?:script|link|img)[^>]+(?:src|href)="https?://'
    assert [page.name for page in tmp_path.rglob("*.html") if re.search(elsewhere, page.read_text())] == []


def test_the_links_of_the_readme_lead_somewhere() -> None:
    links = re.findall(r"\]\(([^)#\s]+)(?:#([^)\s]+))?\)", (ROOT / "README.md").read_text())
    assert len(links) > 15
    for path, anchor in links:
        target = ROOT / path
        assert target.is_file(), path
        if anchor:
            heads = re.findall(r"^#+ (.+)$", target.read_text(), flags=re.MULTILINE)
            # Both GitHub and mkdocs drop punctuation and replace each run of blanks by a hyphen.
            anchors = {re.sub(r"\s+", "-", re.sub(r"[^\w\s-]", "", head).strip().lower()) for head in heads}
            assert anchor in anchors, f"{path}#{anchor}"


def test_no_sentence_about_a_key_breaks_off() -> None:
    rows = re.findall(r"^\| `.*\| (\S.*) \|$", (ROOT / "docs" / "site.md").read_text(), flags=re.MULTILINE)
    assert len(rows) > 100
    assert [row for row in rows if not row.endswith((".", ")", ":"))] == []
