"""A host's disk can be kept as an image, and other hosts boot from it as themselves."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from r1prov import lab
from r1prov.common.errors import LabError

from .people import told

pytestmark = [pytest.mark.host, pytest.mark.usefixtures("bootable")]
NAMES = ("lab-image-first", "lab-image-second", "lab-image-bare")
IMAGE = "lab-test"


@pytest.fixture(autouse=True)
def _clean(bootable: None) -> Iterator[None]:
    for round_ in range(2):
        for name in NAMES:
            lab.down(name)
        lab.forget(IMAGE, "bookworm")
        if round_ == 0:
            yield


LOOK = "cat /etc/kept 2>/dev/null || echo nothing; ls /etc/adduser.conf 2>/dev/null || echo gone"


def test_a_disk_is_kept_and_other_hosts_boot_from_it_as_themselves() -> None:
    first = lab.up(NAMES[0])
    told(first, "echo a word > /etc/kept; rm /etc/adduser.conf")
    identity = told(first, "cat /etc/machine-id /etc/hostname")
    lab.keep(first.name, IMAGE)
    with pytest.raises(LabError, match="no such host"):
        lab.get(first.name)

    second = lab.up(NAMES[1], image=IMAGE)
    assert told(second, LOOK) == "a word\ngone"
    assert told(second, "systemctl is-system-running") == "running"
    theirs = told(second, "cat /etc/machine-id /etc/hostname")
    assert theirs.split()[1] == second.name
    assert theirs.split()[0] != identity.split()[0]
    assert second.host_key != first.host_key
    told(second, "echo another word > /etc/kept")

    bare = lab.up(NAMES[2])
    assert told(bare, LOOK) == "nothing\n/etc/adduser.conf"

    # It is not changed by who runs on it, and stays while somebody does.
    lab.forget(IMAGE, "bookworm")
    again = lab.up(NAMES[0], image=IMAGE)
    assert told(again, "cat /etc/kept") == "a word"
    with pytest.raises(LabError, match="booted from the image lab-test"):
        lab.keep(again.name, "lab-other")
    for name in NAMES:
        lab.down(name)
    lab.forget(IMAGE, "bookworm")
    assert IMAGE not in lab.kept("bookworm")


def test_an_image_that_is_not_there_is_named_with_those_that_are() -> None:
    lab.keep(lab.up(NAMES[0]).name, IMAGE)
    with pytest.raises(LabError, match=r"no image nonsuch; there are: .*lab-test"):
        lab.up(NAMES[1], image="nonsuch")
