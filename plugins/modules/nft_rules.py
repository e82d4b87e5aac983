#!/usr/bin/python
"""Ansible module r1.prov.nft_rules: the rules that the kernel has are those of a file."""

from __future__ import annotations

DOCUMENTATION = r"""
module: nft_rules
short_description: Sees to it that the kernel has the rules of a file of nftables
description:
  - Stock Ansible cannot do it, because it has no module for nftables, and C(nft) shows rules in other words than their file.
  - A namespace of ours has a loopback, which is up, and no other interface.
  - The file is loaded into an empty network namespace, where C(nft) shows what it means. The kernel must have the same. Counters
    and the elements of sets, which change by themselves, do not count. Where root may make no namespace, as in many containers, a
    table of another name that does nothing takes its place for a moment.
  - Without a file it only tells whether the kernel takes rules for services. It does not where root lacks the right, nor in a
    container that shares the network of its machine, where a user's number may be that of another user.
author: The r1prov team
options: {
  "file": {"type": "path", "default": "", "description": "The rules."},
  "namespace": {"type": "str", "default": "", "description": "The network namespace that has these rules and no other. Empty for the
      host's network, where others have rules too."},
  "table": {"type": "str", "default": "", "description": "The family and the name of the table to compare in the host's network."},
  "unit": {"type": "str", "default": "", "description": "The unit that makes the namespace. It is restarted where that is gone."}
  }
"""

EXAMPLES = r"""
- name: Keep the limits
  r1.prov.nft_rules:
    file: /etc/limits.nft
    table: inet limits
"""

RETURN = r"""
allowed: {type: bool, returned: without a file, description: "Whether the kernel takes rules for services here."}
differences: {type: list, elements: str, returned: always, description: "What was not as it should be, in a sentence each."}
"""

import glob
import json
import re
import subprocess
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.r1.prov.plugins.module_utils import private_network, units
from ansible_collections.r1.prov.plugins.module_utils.arguments import arguments
from ansible_collections.r1.prov.plugins.module_utils.private_network import NFT

NAMESPACES = Path("/run/netns")
_LISTING = ("--stateless", "--terse")
"""How nft shows rules without what changes by itself: counters, and the elements of sets."""
_INCLUDE = re.compile(r'^include "([^"]+)"\n', re.MULTILINE)
_BESIDE = "_meant"
"""Ends the name of the table in which nft shows what a file means, where there is no empty network for that."""
_DORMANT = "flags dormant"
_LOOPBACK = "lo"
_ADDRESS = "127.0.0.1"
_OTHER_ADDRESS = "::1"
_MTU = 65536
"""The bytes of the largest packet that a loopback carries to which nobody has done anything."""
_QDISC = "noqueue"
"""How packets wait there."""


class RulesError(Exception):
    """nft refuses something."""


def within(namespace: str) -> list[str]:
    """The beginning of a command that runs in a network namespace."""
    return ["nsenter", f"--net={NAMESPACES / namespace}"] if namespace else []


def meant(file: Path, listing: list[str]) -> str:
    """What nft shows of a file's rules in a network where there are no others.

    Raises:
        RulesError: nft refuses the file.
    """
    script = f'{NFT} --file "$0" && exec {NFT} "$@"'
    try:
        return _run("unshare", "--net", "sh", "-c", script, str(file), *_LISTING, *listing)
    except RulesError:
        made = subprocess.run(["unshare", "--net", "true"], capture_output=True, check=False)
        if made.returncode and listing[1] == "table":
            return meant_beside(file, listing)
        raise


def meant_beside(file: Path, listing: list[str]) -> str:
    """What nft shows of a file's rules in this network: they are loaded as a table of another name, which is dormant.

    Args:
        file: the rules, all of one table.
        listing: `list table FAMILY NAME`.

    Raises:
        RulesError: nft refuses the file, or something in it is not of that table.
    """
    family, name = listing[-2:]
    beside = f"{name}{_BESIDE}"
    # Any other command in the file would be carried out on the network as it is.
    ours = re.compile(rf"((?:add |delete )?(?:table|set|rule) {family}) {name}(?= |$)")
    commands = commands_of(with_included(file))
    if strange := [each for each in commands if not ours.match(each)]:
        raise RulesError(f"{file} says `{strange[0]}`, which is none of the table {family} {name}")
    text = "\n".join(ours.sub(rf"\1 {beside}", each, count=1) for each in commands)
    text = re.sub(rf"^(table {family} {beside} \{{)", rf"\1 {_DORMANT};", text, flags=re.MULTILINE)
    try:
        _run(NFT, "--file", "-", given=text)
        shown = _run(NFT, *_LISTING, *listing[:-1], beside)
    finally:
        subprocess.run([NFT, "delete", "table", family, beside], capture_output=True, check=False)
    return re.sub(rf"\t{_DORMANT}\n\n?", "", shown.replace(f"{family} {beside}", f"{family} {name}"))


def commands_of(text: str) -> list[str]:
    """The commands in the text of a file, without comments. A block is a part of its command."""
    found, depth = [""], 0
    for mark in re.findall(r"[{};\n]|[^{};\n]+", re.sub(r"#.*", "", text)):
        depth += {"{": 1, "}": -1}.get(mark, 0)
        if mark in ";\n" and depth <= 0:
            found.append("")
        else:
            found[-1] += mark
    return [each.strip() for each in found if each.strip()]


def with_included(file: Path) -> str:
    """The text of a file with that of the files that it includes, in their place."""
    return _INCLUDE.sub(
        lambda found: "".join(with_included(Path(path)) for path in sorted(glob.glob(found[1]))),  # noqa: PTH207 - pathlib refuses a pattern from the root on
        file.read_text(encoding="utf-8"),
    )


def has(namespace: str, listing: list[str]) -> str:
    """What nft shows of the rules that the kernel has; empty where the table is not there."""
    command = [*within(namespace), NFT, *_LISTING, *listing]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout if not done.returncode else ""


def sentence(place: str, expected: str, found: str) -> str:
    """How the kernel's rules differ."""
    if not found.strip():
        return f"the rules of {place} are gone from the kernel"
    lines, wanted = [{line.strip() for line in text.splitlines()} for text in (found, expected)]
    missing, more = sorted(wanted - lines), sorted(lines - wanted)
    words = [f"{verb} `{those[0]}`{_and_more(those)}" for verb, those in (("lack", missing), ("have", more)) if those]
    return f"the rules of {place} in the kernel {' and '.join(words) or 'have others, or have another order'}, unlike their file"


def _and_more(lines: list[str]) -> str:
    return f" and {len(lines) - 1} more" if len(lines) > 1 else ""


def links(namespace: str) -> list[dict[str, Any]]:
    """The network interfaces in a namespace with their addresses, as `ip` tells of them."""
    found: list[dict[str, Any]] = json.loads(_run("ip", "-json", "-netns", namespace, "address", "show"))
    return found


def wrong_links(namespace: str) -> dict[str, str]:
    """The interfaces by which a namespace of ours reaches others, and its loopback where that is down; each with a sentence."""
    found = {}
    for each in links(namespace):
        name = each["ifname"]
        # The kernel itself puts tunnels into each namespace, which are down and carry nothing.
        if name == _LOOPBACK and (fault := loopback_fault(each)):
            found[name] = (
                f"the loopback of the network {namespace} {fault}, so its services do not reach each other as they should"
            )
        elif name != _LOOPBACK and ("UP" in each["flags"] or each["link_type"] == "ether"):
            found[name] = f"the network {namespace} has the interface {name}, and should have nothing but a loopback"
    return found


def loopback_fault(link: dict[str, Any]) -> str:
    """What is wrong with a loopback, as the rest of a sentence; empty where nothing is."""
    if "UP" not in link["flags"]:
        return "is down"
    if not any(address["local"] == _ADDRESS for address in link.get("addr_info", [])):
        return f"lacks the address {_ADDRESS}"
    if link["qdisc"] != _QDISC:
        return f"delays or drops what it carries, by the queue {link['qdisc']}"
    return f"takes packets of {link['mtu']} bytes at most" if link["mtu"] < _MTU else ""


def wrong_addresses(namespace: str) -> dict[str, str]:
    """The addresses of its loopback that a namespace of ours should not have, each with a sentence."""
    more = [
        f"{address['local']}/{address['prefixlen']}"
        for each in links(namespace)
        if each["ifname"] == _LOOPBACK
        for address in each.get("addr_info", [])
        if address["local"] not in (_ADDRESS, _OTHER_ADDRESS)
    ]
    said = "the network {} has the address {}, and should have nothing but a loopback"
    return {address: said.format(namespace, address) for address in more}


def put_right(namespace: str, name: str) -> None:
    """Puts a loopback right, removes an address of it, or an interface. One of the host's own hardware goes back to the host."""
    if "/" in name:
        _run("ip", "-netns", namespace, "address", "delete", name, "dev", _LOOPBACK)
        return
    if name == _LOOPBACK:
        _run("ip", "-netns", namespace, "link", "set", _LOOPBACK, "mtu", str(_MTU), "up")
        (loopback,) = (each for each in links(namespace) if each["ifname"] == _LOOPBACK)
        if loopback["qdisc"] != _QDISC:
            _run("tc", "-netns", namespace, "qdisc", "delete", "dev", _LOOPBACK, "root")
        # The kernel gives it its address only when it comes up for the first time.
        _run("ip", "-netns", namespace, "address", "replace", f"{_ADDRESS}/8", "dev", _LOOPBACK, "scope", "host")
        return
    try:
        _run("ip", "-netns", namespace, "link", "delete", name)
    except RulesError:
        _run("ip", "-netns", namespace, "link", "set", name, "netns", "1")


def apply(file: Path, namespace: str) -> None:
    """Loads the file. A namespace of ours loses all other rules in the same moment."""
    text = f'flush ruleset\ninclude "{file}"\n' if namespace else f'include "{file}"\n'
    _run(*within(namespace), NFT, "--file", "-", given=text)


def _run(*command: str, given: str = "") -> str:
    done = subprocess.run(command, input=given, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RulesError(f"{' '.join(command)}: {done.stderr.strip()}")
    return done.stdout


def of_links(namespace: str, *, mends: bool) -> list[str]:
    """What is wrong with the interfaces of a namespace of ours, and puts it right where that is wanted."""
    wrong = {**wrong_links(namespace), **wrong_addresses(namespace)}
    for name in wrong if mends else ():
        put_right(namespace, name)
    return list(wrong.values())


def of_rules(place: str, file: Path, namespace: str, listing: list[str], *, mends: bool) -> list[str]:
    """How the rules of the kernel differ from those of a file, and loads the file where that is wanted.

    Raises:
        RulesError: the file cannot be loaded.
    """
    found = has(namespace, listing)
    try:
        expected = meant(file, listing)
    except RulesError as error:
        if mends:
            raise
        return [f"the rules of {place} cannot be read: {str(error).splitlines()[0]}"]
    if expected == found:
        return []
    if mends:
        apply(file, namespace)
    return [sentence(place, expected, found)]


def main() -> None:
    module = AnsibleModule(argument_spec=arguments(DOCUMENTATION), supports_check_mode=True)
    if not module.params["file"]:
        module.exit_json(changed=False, differences=[], allowed=private_network.takes_rules())
    file, namespace, unit = Path(module.params["file"]), module.params["namespace"], module.params["unit"]
    place = f"the network {namespace}" if namespace else f"the table {module.params['table']}"
    if not Path(NFT).exists() or not file.exists():  # in check mode on a fresh host
        module.exit_json(changed=False, differences=[])
    if not namespace and not private_network.takes_rules():
        said = f"the kernel takes no rules from this host any more, and is to have those of {place}"
        module.exit_json(changed=True, differences=[said])
    listing = ["list", "ruleset"] if namespace else ["list", "table", *module.params["table"].split()]
    mends, differences = not module.check_mode, []
    try:
        if namespace and not (NAMESPACES / namespace).exists():
            differences = [f"the network {namespace} is gone"]
            if mends:
                units.systemctl("restart", unit)
        else:
            differences = of_links(namespace, mends=mends) if namespace else []
            differences += of_rules(place, file, namespace, listing, mends=mends)
    except (RulesError, units.UnitError) as error:
        module.fail_json(
            msg=f"the rules of {place} cannot be put right: {error}. `nft --check --file {file}` says whether the file is well",
            differences=differences,
        )
    module.exit_json(changed=bool(differences), differences=differences)


if __name__ == "__main__":
    main()
