"""Every unit that r1prov writes is one that the systemd of each release understands whole."""

from __future__ import annotations

import re
import subprocess
import tempfile
from pathlib import Path

import pytest
import yaml

from r1prov import lab
from r1prov.common import paths
from r1prov.lab.base import Release, base_image
from tests.fixtures import saying, service_units

pytestmark = [pytest.mark.host, pytest.mark.usefixtures("bootable")]

# Together they have each branch of the templates that a site can choose.
SITES = {
    "cards, and a certificate from an ACME server": {
        "profile": "4x4090",
        "hosts": ["gpu1.example.com"],
        "gateway": {"server_name": "chat.example.com", "tls": {"type": "acme", "email": "admin@example.com"}},
        "sources": {"environment_file": "/etc/network_turbo"},
        "watch": "1h",
    },
    "no card, and a high port": {
        "profile": "demo",
        "hosts": ["cpu1.example.com"],
        "gateway": {"server_name": "chat.example.com", "port": 8443, "tls": {"type": "local-authority"}},
        "watch": "1h",
    },
}

# The settings that a release ignores on purpose. docs/systems.md tells what is lost with each.
LOST: dict[Release, set[str]] = {"bullseye": {"NoExecPaths", "PrivateIPC"}}
DOCS = Path(__file__).parents[2] / "docs" / "systems.md"

# No image is booted. systemd-analyze needs /proc, and before systemd 248 its control group in /sys. The programs that roles install are not
# in an image; that they can be executed is all that is asked of them. A program that a unit names without a folder is looked for in the
# current one by systemd 247 when it verifies, and on the path when it runs.
VERIFY = r"""
root=$1; shift
mount -t overlay units -o "lowerdir=$1,upperdir=$2,workdir=$3,volatile" "$root"
mount -t proc proc "$root/proc"
mount --rbind /sys "$root/sys"
exec chroot "$root" sh -ec '
    cd /etc/systemd/system
    sed -nE "s/^Exec[A-Za-z]+=[-+!:@]*(\/[^ ]+).*/\1/p" r1prov-* | sort -u | while read -r program; do
        [ -e "$program" ] || { mkdir -p "${program%/*}"; echo "#!/bin/sh" > "$program"; chmod +x "$program"; }
    done
    cd /bin
    systemd-analyze verify --man=no /etc/systemd/system/r1prov-* 2>&1
'
"""


@pytest.fixture(scope="module", params=SITES)
def rendered(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """All units of a site, by name."""
    folder = tmp_path_factory.mktemp("site")
    site = folder / "r1prov.yml"
    site.write_text(yaml.safe_dump(SITES[request.param]))
    return service_units.rendered(site, folder)


def verified(release: Release, written: dict[str, str]) -> list[str]:
    """What systemd-analyze says of units in the image of a release."""
    image = base_image(release, saying.to_stderr)
    with tempfile.TemporaryDirectory(dir=paths.cache_dir(), prefix="lab-units-") as scratch:
        folders = {name: Path(scratch) / name for name in ("root", "upper", "work")}
        for folder in folders.values():
            folder.mkdir()
        system = folders["upper"] / "etc/systemd/system"
        system.mkdir(parents=True)
        for name, text in written.items():
            (system / name).write_text(text)
        argv = [folders["root"], image, folders["upper"], folders["work"]]
        command = ["unshare", "--mount", "sh", "-ec", VERIFY, "sh", *argv]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    return [re.sub(r"\x1b\[[0-9;]*m", "", line) for line in (done.stdout + done.stderr).splitlines()]


@pytest.mark.parametrize("release", lab.RELEASES)
def test_each_release_knows_all_that_is_in_our_units(release: Release, rendered: dict[str, str]) -> None:
    known = yaml.safe_load((service_units.SERVICE / "vars" / "main.yml").read_text())["__service_units"]
    assert sorted(rendered) == sorted(known)
    complaints = verified(release, rendered)
    ignored = [re.search(r": Unknown key (?:name )?'(\w+)'.*, ignoring[.]$", line) for line in complaints]
    assert [line for line, match in zip(complaints, ignored, strict=True) if not match] == []
    lost = {match[1] for match in ignored if match}
    assert lost == LOST.get(release, set())
    assert [name for name in lost if f"`{name}`" not in DOCS.read_text()] == []


def test_a_setting_that_a_release_does_not_know_is_seen() -> None:
    written = {"r1prov-new.service": "[Service]\nType=exec\nExecStart=/bin/true\nRestartMode=direct\n"}
    assert verified("trixie", written) == []
    [complaint] = verified("bookworm", written)
    assert "'RestartMode'" in complaint
