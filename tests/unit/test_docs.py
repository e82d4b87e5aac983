"""The generated pages say what the code says."""

import runpy
from pathlib import Path

import pytest

from benchmarks import plan

ROOT = Path(__file__).resolve().parents[2]
PAGES = runpy.run_path(str(ROOT / "docs" / "generate.py"))["pages"]()


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_a_generated_page_is_up_to_date(page: Path) -> None:
    assert page.read_text() == PAGES[page], "run `make docs`"


def test_every_key_of_the_site_file_is_described() -> None:
    rows = [line for line in (ROOT / "docs" / "site.md").read_text().splitlines() if line.startswith("| `")]
    assert [row for row in rows if row.endswith("|  |")] == []


def test_the_table_of_what_a_token_reads_is_what_the_benchmark_prints() -> None:
    assert plan.table() in (ROOT / "docs" / "offload.md").read_text(), "run `python -m benchmarks.plan`"
