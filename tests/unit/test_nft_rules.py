"""Tests of what nft shows of a file, with the rules that the roles write, in networks of their own."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from ansible_collections.r1.prov.plugins.modules import nft_rules

ROOT = Path(__file__).parents[2]
RULES = {
    "network": (ROOT / "roles/service/files/network.nft").read_text(),
    "gateway": (ROOT / "roles/gateway/templates/limits.nft.j2")
    .read_text()
    .replace('{{ __gateway_listens | join(", ") }}', "443")
    .replace("{{ gateway_connections_per_second }}", "20")
    .replace("{{ 10 * gateway_connections_per_second }}", "200"),
}
OF_ONE = """# one service
add set inet r1prov alone { type inet_service; size 65535; flags dynamic,timeout; timeout 2s; }
add rule inet r1prov answers tcp sport 8090 meta skuid != "nobody" drop; add rule inet r1prov answers meta skuid { 0, 7 } drop
add rule inet r1prov called meta skuid "nobody" update @alone { tcp sport } accept
"""
BOTH_WAYS = """
from pathlib import Path
from ansible_collections.r1.prov.plugins.modules import nft_rules
file, listing = Path({file!r}), ["list", "table", *{table!r}.split()]
nft_rules.apply(file, "")
beside = nft_rules.meant_beside(file, listing)
assert beside == nft_rules.meant(file, listing) == nft_rules.has("", listing), beside
assert nft_rules._run(nft_rules.NFT, "list", "tables").splitlines() == ["table " + {table!r}]
print(len(beside.splitlines()))
"""


@pytest.mark.skipif(
    os.geteuid() != 0 or not shutil.which("nft"), reason="only root makes a network, and nft loads rules there"
)
@pytest.mark.parametrize(("rules", "table"), [("network", "inet r1prov"), ("gateway", "inet r1prov_gateway")])
def test_a_table_beside_shows_what_an_empty_network_does(tmp_path: Path, rules: str, table: str) -> None:
    file = tmp_path / "rules.nft"
    file.write_text(RULES[rules].replace("/etc/r1prov/network", str(tmp_path)))
    (tmp_path / "r1prov-files.nft").write_text(OF_ONE)
    code = BOTH_WAYS.format(file=str(file), table=table)
    done = subprocess.run(
        ["unshare", "--net", sys.executable, "-c", code],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert not done.returncode, done.stderr
    assert int(done.stdout) > 20


@pytest.mark.parametrize(
    "more",
    [
        "flush ruleset",
        "table  inet  r1prov",
        "delete table inet mine",
        "add rule inet r1prov answers drop; flush ruleset",
        "table inet r1prov_other {}",
        'include "/etc/passwd" ',
    ],
)
def test_what_is_of_another_table_is_never_loaded_to_be_looked_at(tmp_path: Path, more: str) -> None:
    file = tmp_path / "network.nft"
    file.write_text(f"table inet r1prov {{\n    chain answers {{ }} # {{\n}}\n{more}\n")
    with pytest.raises(nft_rules.RulesError, match=r"which is none of the table inet r1prov$"):
        nft_rules.meant_beside(file, ["list", "table", "inet", "r1prov"])


def test_a_file_that_includes_others_has_their_text_in_its_place(tmp_path: Path) -> None:
    for name in ("b", "a"):
        (tmp_path / f"r1prov-{name}.nft").write_text(f"add rule {name}\n")
    file = tmp_path / "network.nft"
    file.write_text(f'table inet r1prov\ninclude "{tmp_path}/r1prov-*.nft"\nend\n')
    assert nft_rules.with_included(file) == "table inet r1prov\nadd rule a\nadd rule b\nend\n"
