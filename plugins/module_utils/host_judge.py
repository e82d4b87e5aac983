"""Judges whether a host fits what is asked of it. Pure: it takes the facts of host_probe and an expectation, and returns all problems."""

from __future__ import annotations

from ipaddress import ip_address
from typing import TYPE_CHECKING, Any

from ansible_collections.r1.prov.plugins.module_utils.data_disk import BRING_BACK
from ansible_collections.r1.prov.plugins.module_utils.host_probe import MEMORY, NETWORK_SHARES

if TYPE_CHECKING:
    from collections.abc import Iterator

MIB, GIB = 1024**2, 1024**3

CHECKS = {
    "os": "a distribution r1prov knows",
    "arch": "x86-64",
    "sudo": "the tasks run as root",
    "clock": "host and controller agree on the time",
    "cpu": "enough CPUs",
    "ram": "enough RAM",
    "floor": "RAM and GPU memory together hold the model",
    "driver": "the NVIDIA driver works and is new enough",
    "gpu_count": "enough cards",
    "gpu_memory": "enough memory on each card",
    "gpu_compute": "cards of the compute capability that is compiled for",
    "gpu_busy": "nobody else uses the cards",
    "gpu_devices": "the device files of the cards are there",
    "disk": "room for everything still to be written",
    "hook": "the platform's script can be written, which starts the services with the container",
    "ports": "the ports are free or ours",
    "network": "services can be kept in a network of their own",
    "tls": "nobody reaches the gateway without TLS",
    "sources": "every source answers",
    "fit": "the engine itself finds room for the plan",
}
"""The checks by name, and what each makes sure of. An operator may override a check by its name. The role llama_server makes the check
`fit`, because that needs a built engine. All others are made here, before anything is changed."""

SUPPORTED_OS = {"debian": ("12", "13"), "ubuntu": ("22.04", "24.04")}
OUR_UNITS = "r1prov-"  # every unit of r1prov begins so: what they hold is no obstacle to a re-run
# The driver takes a little of each card for itself, and versions differ in how much of it they show.
CARD_MEMORY_TOLERANCE = 0.02
# A desktop or a monitoring agent is no obstacle: llama.cpp leaves this much of each card free by default.
TOLERATED_USE_BYTES = GIB
WITHOUT_CARDS_BYTES = 8 * GIB
"""A container with less RAM than this was started without its cards. Platforms have such a mode to save money; AutoDL's has 2 GiB."""

_Finding = tuple[str, str, str]  # check, what, remedy


def judge(facts: dict[str, Any], expect: dict[str, Any]) -> list[dict[str, Any]]:
    """Finds everything that keeps a host from doing what is asked.

    Args:
        facts: of `host_probe.probe`, and beside them `present_bytes` ({path: bytes already there}), `private_network`
            (of `private_network.fault`), `rules` (of `private_network.takes_rules`),
            `hook` (of `platform_hook.obstacle`; empty where there is none)
            and `sources` (of `source_probe.out_of_reach`).
        expect: `backend` (cpu, cuda), `gpu_count`, `gpu_memory_bytes` (each card), `gpu_compute_capability`,
            `driver_minimum`, `ram_bytes`, `memory_floor_bytes` (RAM + GPU memory), `cores`, `disk`, `ports`, `clock_s`,
            `clock_skew_s`, `data_dir` (with `data_disk` and `data_disk_away` among the facts). What is absent or None is not asked.

    Returns:
        One dict per problem: `check` (a key of CHECKS), `what` (a sentence with figures), `remedy` (what to do next).
    """
    if away := facts.get("data_disk_away"):  # Much else is missing then, and comes back with it.
        return [{"check": "disk", "what": away, "remedy": BRING_BACK}]
    checks = (
        _system,
        _clock,
        _processor,
        _memory,
        _cards,
        _system_disk,
        _disk,
        _hook,
        _ports,
        _network,
        _tls,
        _sources,
    )
    return [
        {"check": check, "what": what, "remedy": remedy}
        for function in checks
        for check, what, remedy in function(facts, expect)
    ]


def remarks(facts: dict[str, Any], expect: dict[str, Any]) -> list[str]:
    """What whoever runs this should know of the host, in a sentence each: what services lack there, and where it is slower than planned."""
    cpu, threads, nodes = facts["cpu"], expect.get("threads") or 0, expect.get("numa_nodes") or 0
    found = []
    if facts["init"] != "systemd":
        network = (
            "no sandbox. Rules of the kernel keep them from the world, and Ollama's port from whoever else logs in to this host"
            if facts["rules"]
            else "neither a sandbox nor a private network: whoever else logs in to this host reaches their ports, and that of Ollama "
            "asks nobody for a login"
        )
        found.append(
            f"process 1 is `{facts['init']}`, not systemd, so supervisord runs the services. They have users of their own, and {network} "
            "(docs/containers.md)"
        )
        if not facts["platform"]:
            found.append(
                "it is of no platform that r1prov knows, so nothing starts the services with the host: have "
                "`/usr/local/bin/r1prov-units boot` run whenever it starts"
            )
    if threads > cpu["usable_threads"]:
        found.append(
            f"it has {cpu['usable_threads']} CPUs to use ({cpu['cores']} physical cores), and {threads} threads are to compute: they will "
            f"wait for one another. Write `cpu_threads: {min(cpu['cores'], cpu['usable_threads'])}` into the profile's `machine`"
        )
    if nodes and nodes != cpu["numa_nodes"]:
        found.append(
            f"NUMA nodes of its RAM: {cpu['numa_nodes']}; the plan is made for {nodes}. Write `numa_nodes: {cpu['numa_nodes']}` into the "
            "profile's `machine`, so that threads and RAM are used as they lie"
        )
    return found


def size(n_bytes: float) -> str:
    """Bytes for people, in decimal units as profiles and disk makers use them: `140.2 GB`, `350 MB`."""
    return f"{n_bytes / 1e9:,.1f} GB" if n_bytes >= 1e9 else f"{n_bytes / 1e6:,.0f} MB"


def in_container(facts: dict[str, Any]) -> bool:
    """Whether a host is a container, whose machine somebody else looks after."""
    return bool(facts["container"]) or facts["init"] != "systemd"


def lacks_its_cards(facts: dict[str, Any], expect: dict[str, Any]) -> bool:
    """Whether a host is a container that shows none of the cards that are wanted of it.

    Its files in /proc and /sys show the driver and the PCI bus of the machine, which say nothing about the container.
    """
    return expect.get("backend") == "cuda" and in_container(facts) and not facts["gpu"]["cards"]


def _is_saving(facts: dict[str, Any], expect: dict[str, Any]) -> bool:
    """Whether it has next to no RAM, too. Then all of it is what the platform gives today, and one finding says so."""
    return lacks_its_cards(facts, expect) and bool(facts["ram"]["total_bytes"] < WITHOUT_CARDS_BYTES)


def _system(facts: dict[str, Any], _expect: dict[str, Any]) -> Iterator[_Finding]:
    name, version = facts["os"]["id"], facts["os"]["version"]
    if version not in SUPPORTED_OS.get(name, ()):
        known = " and ".join(f"{known.capitalize()} {', '.join(SUPPORTED_OS[known])}" for known in SUPPORTED_OS)
        yield (
            "os",
            f"it runs {facts['os']['name'] or facts['system']}; r1prov is made for {known}",
            "install one of them; on a close relative, override the check `os`",
        )
    if facts["arch"] != "x86_64":
        yield "arch", f"its processor is {facts['arch']}; r1prov builds for x86_64", "use an x86-64 server"
    if facts["sudo"] != "root":
        yield (
            "sudo",
            f"the tasks run as {facts['user']}, not as root",
            "log in as root, or as a user who may use sudo, with `become: true`",
        )


def _clock(facts: dict[str, Any], expect: dict[str, Any]) -> Iterator[_Finding]:
    if expect.get("clock_s") is None:
        return
    skew_s = facts["clock_s"] - expect["clock_s"]
    if abs(skew_s) > expect["clock_skew_s"]:
        way = "ahead of" if skew_s > 0 else "behind"
        yield (
            "clock",
            f"its clock is {abs(skew_s):,.0f} s {way} the controller's; {expect['clock_skew_s']:.0f} s are tolerated",
            "`timedatectl set-ntp true` on the host, or set its clock; else certificates look invalid",
        )


def _processor(facts: dict[str, Any], expect: dict[str, Any]) -> Iterator[_Finding]:
    if _is_saving(facts, expect):
        return
    wanted, threads = expect.get("cores") or 0, facts["cpu"]["usable_threads"]
    if threads < wanted:
        yield "cpu", f"it has {threads} CPUs to use, {wanted} are wanted", "choose a profile that fits this server"


def _memory(facts: dict[str, Any], expect: dict[str, Any]) -> Iterator[_Finding]:
    if _is_saving(facts, expect):
        return
    ram, vram = facts["ram"]["total_bytes"], sum(card["memory_bytes"] for card in facts["gpu"]["cards"])
    wanted = expect.get("ram_bytes") or 0
    if ram < wanted:
        yield (
            "ram",
            f"it has {size(ram)} of RAM, {size(wanted)} are wanted",
            "choose a profile that fits this server, or add RAM",
        )
    floor = expect.get("memory_floor_bytes") or 0
    if ram + vram < floor:
        yield (
            "floor",
            f"RAM and GPU memory are {size(ram + vram)} ({size(ram)} and {size(vram)}); this quant needs {size(floor)}",
            "choose a smaller quant or a larger server: what does not fit is read from disk again for every token",
        )


def _cards(facts: dict[str, Any], expect: dict[str, Any]) -> Iterator[_Finding]:
    if expect.get("backend") != "cuda":
        return
    gpu, wanted = facts["gpu"], expect.get("gpu_count") or 1
    if lacks_its_cards(facts, expect):
        memory = f" and {size(facts['ram']['total_bytes'])} of RAM" if _is_saving(facts, expect) else ""
        said = f" (nvidia-smi says: {gpu['error']})" if gpu["error"] else ""
        yield (
            "gpu_count",
            f"this container has no card today{memory}, {wanted} {'card is' if wanted == 1 else 'cards are'} wanted{said}",
            "stop the instance on the platform's page, and start it there with its cards",
        )
        return
    if not gpu["cards"] and (gpu["on_bus"] or gpu["driver"] or gpu["error"]):
        yield _dead_driver(gpu)
        if gpu["on_bus"] < wanted and gpu["on_bus"]:
            yield "gpu_count", f"it has {gpu['on_bus']} NVIDIA cards, {wanted} are wanted", "choose a profile that fits"
        return
    if len(gpu["cards"]) < wanted:
        lost = gpu["on_bus"] > len(gpu["cards"]) and not in_container(facts)  # A container sees the bus of its machine.
        yield (
            "gpu_count",
            f"it has {len(gpu['cards']) or 'no'} NVIDIA cards, {wanted} are wanted"
            + (f"; the PCI bus has {gpu['on_bus']}, the driver does not show all" if lost else ""),
            "`dmesg | grep -i nvrm` says why cards are missing; a reboot often brings them back"
            if lost
            else "choose a profile that fits this server; `cpu` needs no card",
        )
    # A server may have more cards than asked for, such as a small one for its screen.
    cards = sorted(gpu["cards"], key=lambda card: -card["memory_bytes"])[:wanted]
    yield from _driver(facts, cards, expect)
    yield from _card_kind(cards, expect)
    yield from _busy(cards, in_container(facts))
    if gpu["missing_devices"]:
        yield (
            "gpu_devices",
            f"/dev lacks {', '.join(path.replace('/dev/', '') for path in gpu['missing_devices'])}",
            "no program in a container can make them: stop the instance on the platform's page and start it there, else ask the platform"
            if in_container(facts)
            else "`nvidia-modprobe -c 0 -u` makes them, nvidia-persistenced at every boot",
        )


def _dead_driver(gpu: dict[str, Any]) -> _Finding:
    """The driver does not show the cards that are there."""
    error = gpu["error"]
    cards = f"{gpu['on_bus']} NVIDIA cards are in it" if gpu["on_bus"] else "an NVIDIA driver is installed"
    if not gpu["nvidia_smi"] and gpu["driver"]:
        return (
            "driver",
            f"driver {gpu['driver']} is loaded, but nvidia-smi is missing",
            "install the package that goes with the driver: nvidia-smi (Debian), nvidia-utils-NNN (Ubuntu)",
        )
    if not gpu["nvidia_smi"]:
        return (
            "driver",
            f"{cards}, but no driver",
            "`apt install nvidia-driver` (Debian, non-free) or `ubuntu-drivers install` (Ubuntu), then reboot",
        )
    if "mismatch" in error:
        remedy = "the driver was updated under a running kernel module: reboot the host"
    elif "communicate with the NVIDIA driver" in error:
        remedy = "`modprobe nvidia` says why: often a new kernel without its headers, or Secure Boot; then reboot"
    else:
        remedy = "see `nvidia-smi` and `dmesg | grep -i nvrm` on the host; a reboot often helps"
    return "driver", f"{cards}, but nvidia-smi fails: {error}", remedy


def _driver(facts: dict[str, Any], cards: list[dict[str, Any]], expect: dict[str, Any]) -> Iterator[_Finding]:
    gpu = facts["gpu"]
    minimum = expect.get("driver_minimum")
    if cards and minimum and _version(gpu["driver"]) < _version(minimum):
        yield (
            "driver",
            f"its NVIDIA driver is {gpu['driver']}; the CUDA toolkit chosen needs {minimum} or newer",
            "let the platform update the driver, or choose a toolkit that it can run (the distribution's or NVIDIA's packages)"
            if in_container(facts)
            else "update the driver, or choose a toolkit that it can run (the distribution's or NVIDIA's packages)",
        )


def _card_kind(cards: list[dict[str, Any]], expect: dict[str, Any]) -> Iterator[_Finding]:
    wanted = expect.get("gpu_memory_bytes") or 0
    small = [card for card in cards if card["memory_bytes"] < wanted * (1 - CARD_MEMORY_TOLERANCE)]
    if small:
        sizes = ", ".join(f"{_named(card)} has {card['memory_bytes'] // MIB:,} MiB" for card in small)
        yield "gpu_memory", f"{sizes}; {wanted // MIB:,} MiB are wanted", "choose a profile that fits these cards"
    capability = expect.get("gpu_compute_capability")
    other = [card for card in cards if capability and card["compute_capability"] not in ("", capability)]
    if other:
        kinds = ", ".join(f"{_named(card)} has compute capability {card['compute_capability']}" for card in other)
        yield (
            "gpu_compute",
            f"{kinds}; the engine will be compiled for {capability}",
            "name the cards' compute capability in the profile",
        )


def _busy(cards: list[dict[str, Any]], in_container: bool) -> Iterator[_Finding]:
    for card in cards:
        ours = [process for process in card["processes"] if process["unit"].startswith(OUR_UNITS)]
        if any(process["used_bytes"] is None for process in ours):
            continue  # what is ours is not told, so neither is what is not
        others = card["used_bytes"] - sum(process["used_bytes"] for process in ours)
        if others > TOLERATED_USE_BYTES:
            unseen = "other containers of its machine" if in_container else "processes that cannot be seen from here"
            names = [
                f"{process['process']} (process {process['pid']}{', ' + process['unit'] if process['unit'] else ''})"
                for process in card["processes"]
                if process not in ours
            ]
            used = f"{others // MIB:,} of {card['memory_bytes'] // MIB:,} MiB of card {card['index']}"
            yield (
                "gpu_busy",
                f"{used} are used by {', '.join(names) or unseen}",
                "rent an instance whose cards nobody else uses, or choose a profile that leaves this card alone"
                if in_container and not names
                else "stop them, or choose a profile that leaves this card alone",
            )


def _system_disk(facts: dict[str, Any], expect: dict[str, Any]) -> Iterator[_Finding]:
    """Whether what makes this host can be written, and is there again when a platform has built its container anew."""
    if facts["etc_read_only"]:
        yield (
            "disk",
            "/etc is read-only, and accounts and units are to be written there",
            "start it with a writable system disk" + (", on the platform's page" if in_container(facts) else ""),
        )
    data = facts.get("data_disk")
    if not data:
        return
    place = expect["data_dir"]
    if facts["init"] == "systemd":
        if data["kind"] in MEMORY:
            yield "disk", _in_memory(place, data), "name a folder on a disk as `data_dir`"
        return
    fits = [path for path in facts["data_disks"] if path != data["mount"]]
    remedy = (
        f"write `data_dir: {fits[0]}/r1prov` into the site file"
        if fits
        else "rent it with a data disk, and name a folder on that as `data_dir`; `override: [disk]` goes on without one"
    )
    if data["kind"] in MEMORY:
        yield "disk", _in_memory(place, data), remedy
    elif data["filesystem"] == facts["system_disk"]["filesystem"]:
        yield (
            "disk",
            f"{place} lies on the container's own disk ({data['kind']}), which is gone when the platform builds the container anew",
            remedy,
        )
    elif data["kind"].startswith(NETWORK_SHARES):
        yield (
            "disk",
            f"{place} lies on a network share ({data['kind']} at {data['mount']}), and programs and databases are to lie there",
            f"{remedy}; the share can be a source of the weights (`type: folder`)",
        )


def _in_memory(place: str, data: dict[str, Any]) -> str:
    return f"{place} lies in memory ({data['kind']} at {data['mount']}), which the model needs, and is gone when the host stops"


def _disk(facts: dict[str, Any], expect: dict[str, Any]) -> Iterator[_Finding]:
    filesystems: dict[str, Any] = {}
    for item, disk in zip(expect.get("disk") or [], facts["disks"], strict=True):
        there = sum(min(file["bytes"], facts["present_bytes"].get(file["path"], 0)) for file in item.get("have") or [])
        missing = max(0, item["bytes"] - there)
        if missing:
            filesystems.setdefault(disk["filesystem"], (disk, []))[1].append((item["what"], missing))
    for place in sorted({disk["in_the_way"] for disk in facts["disks"] if disk["in_the_way"]}):
        yield "disk", f"{place} is no folder, and one is wanted there", "move it away, or choose another `data_dir`"
    for disk, items in filesystems.values():
        needed, parts = sum(n_bytes for _, n_bytes in items), ", ".join(f"{what} ({size(n)})" for what, n in items)
        place, free = f"the filesystem at {disk['mount']}", disk["free_bytes"]
        if disk["read_only"]:
            yield "disk", f"{place} is read-only; wanted there: {parts}", "mount it writable"
        elif needed > free:
            # Of the machine's disks a container sees those of other people.
            other = (
                "make this one larger on the platform's page"
                if in_container(facts)
                else "use another disk (is a data disk not mounted? `lsblk` shows it)"
            )
            yield (
                "disk",
                f"{place} has {size(free)} free; {size(needed)} are still to be written there: {parts}",
                f"free {size(needed - free)}, or {other}",
            )


def _hook(facts: dict[str, Any], _expect: dict[str, Any]) -> Iterator[_Finding]:
    if facts["hook"] and not facts["etc_read_only"]:  # One finding about a system disk that is read-only is enough.
        yield "hook", facts["hook"]["what"], facts["hook"]["remedy"]


def _ports(facts: dict[str, Any], expect: dict[str, Any]) -> Iterator[_Finding]:
    for wanted in expect.get("ports") or []:
        for owner in facts["listeners"]:
            if owner["port"] != wanted["port"] or owner["unit"].startswith(wanted["unit"].removesuffix(".service")):
                continue  # the unit itself, or its door
            who = (
                " of ".join(filter(None, (owner["process"], owner["unit"])))
                or "a process that cannot be seen from here"
            )
            yield (
                "ports",
                f"port {owner['port']}, meant for {wanted['unit']}, is taken by {who}"
                + (f" (process {owner['pid']})" if owner["pid"] else ""),
                "choose another port in the site file, or stop what has it if nobody needs that",
            )


def _network(facts: dict[str, Any], expect: dict[str, Any]) -> Iterator[_Finding]:
    for wanted in expect.get("ports") or [] if facts["init"] != "systemd" else ():
        if not is_loopback(wanted.get("address") or "127.0.0.1"):
            yield (
                "network",
                f"{wanted['unit']} is to listen at {wanted['address']}, and without systemd it can listen at 127.0.0.1 alone",
                "take the address out of the site file, and let a `gateway` offer the API and the page to others",
            )
    if facts["private_network"]:
        yield (
            "network",
            f"its services cannot be kept in a network of their own: {facts['private_network']}",
            "use a real or virtual machine, or have whoever runs this container allow network namespaces and nftables in it",
        )


def _tls(facts: dict[str, Any], expect: dict[str, Any]) -> Iterator[_Finding]:
    for wanted in expect.get("ports") or []:
        address = wanted.get("plain_at") or ""
        if not address or is_loopback(address):
            continue
        what = f"{wanted['unit']} is to speak HTTP without TLS at {address}, and "
        remedy = (
            "choose another type of `gateway.tls`, or `address: 127.0.0.1` where a proxy on the same server ends TLS"
        )
        if facts["init"] == "systemd":
            yield "tls", f"{what}this is no rented container, whose platform would stand before it", remedy
        elif facts["public_addresses"]:
            public = ", ".join(facts["public_addresses"])
            yield "tls", f"{what}this container has an address of its own in the internet: {public}", remedy


def _sources(facts: dict[str, Any], _expect: dict[str, Any]) -> Iterator[_Finding]:
    for need in facts["sources"]:
        tried = "; ".join(f"{source['source']}: {source['problem']}" for source in need["tried"])
        remedies = dict.fromkeys(source["remedy"] for source in need["tried"])  # each once, in their order
        yield "sources", f"no source answers for {need['what']}: {tried}", "; ".join(remedies)


def is_loopback(address: str) -> bool:
    """Whether an address leads to this host alone."""
    return address == "localhost" or ip_address(address.strip("[]")).is_loopback


def _named(card: dict[str, Any]) -> str:
    return f"card {card['index']} ({card['name']})"


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(".") if part.isdigit())
