"""Reads a site from `r1prov.yml` and flags, and checks it. It reports every mistake at once, before any host is contacted."""

from __future__ import annotations

import hashlib
import re
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from r1prov.common import documents, paths
from r1prov.common.errors import Problem, SiteError
from r1prov.common.network import without_login
from r1prov.common.paths import SITE_FILE
from r1prov.machines.profile import Profile, load_profile
from r1prov.site import fleet
from r1prov.site.judges import certificate_fault, loose_files
from r1prov.site.keys import Certificate, SiteFile
from r1prov.site.site import Site

if TYPE_CHECKING:
    from collections.abc import Iterable

    from r1prov.models.sources import WeightSource
    from r1prov.site.keys import Gateway
    from r1prov.site.sources import LlamaCppSource, OllamaSource, PythonSource

    Archive = LlamaCppSource | OllamaSource | PythonSource

FLAGS = {"context_per_slot": "--ctx-size", "slots": "--parallel", "first_token": "--first-token"}
"""Key -> its flag, for flags that are named as llama-server names them."""


def load(path: Path | None = None, *, chosen: dict[str, Any] | None = None, **flags: Any) -> Site:
    """Read the site from a file and from flags, which win over the file.

    Args:
        path: the site file. Default: `r1prov.yml` in this folder, unless a flag names hosts.
        chosen: keys that count where the file is silent, as `r1prov engine` and `r1prov upgrade` chose them before.
        flags: keys of `SiteFile`, of which `hosts` are strings. One that is None or empty was not given.

    Raises:
        SiteError: something is wrong. It carries every problem.
    """
    given = {key: value for key, value in flags.items() if value not in (None, (), [])}
    if path is None and not given.get("hosts") and Path(SITE_FILE).is_file():
        path = Path(SITE_FILE)
    if path is not None:
        base = _read(path).model_dump(exclude_unset=True)
        path = path.resolve()
    else:
        base = {}
        _require_flags(given)
    file = validated(documents.merged(chosen or {}, documents.merged(base, given)))
    return _assembled(path, _files_beside(path, file))


def _assembled(path: Path | None, file: SiteFile) -> Site:
    """The site of a file whose paths are full, with the profiles that it and its groups name."""
    of_groups = {name: file.of_group(name) for name in file.groups}
    groups = {name: Site(path=path, file=own, profile=_wanted(own)) for name, own in of_groups.items()}
    # Where each group has a profile, the site need not name one.
    profile = _wanted(file) if file.profile else next(iter(groups.values())).profile
    site = Site(path=path, file=file, profile=profile, groups=groups)
    if problems := fleet.pool_faults([(None, site), *groups.items()]):
        raise SiteError(*problems)
    return site


def validated(keys: dict[str, Any]) -> SiteFile:
    """Validate the keys of a file and of flags together.

    Raises:
        SiteError: a flag is wrong, or keys contradict each other.
    """
    try:
        return SiteFile.model_validate(keys)
    except ValidationError as error:
        raise SiteError(
            *(
                Problem(
                    _flag(detail["loc"]),
                    documents.words(detail),
                    f"see --help and {paths.page('site.md')}",
                )
                for detail in error.errors()
            )
        ) from None


def _flag(location: tuple[int | str, ...]) -> str:
    """The flag that sets a key. Each version has a flag of its own, in `r1prov upgrade`."""
    words = [str(part) for part in location[:2]]
    if not words:
        return "the site"
    return FLAGS.get(words[0], "--" + (words[-1].replace("_", "-") if words[0] == "versions" else words[0]))


def _read(path: Path) -> SiteFile:
    """Read the site file. Where it is wrong, its profile is checked too.

    Raises:
        SiteError: the file is wrong. It carries every problem of file and profile.
    """
    try:
        return documents.load(path, SiteFile)
    except SiteError as error:
        profile = documents.glance(path, "profile")
        try:
            if isinstance(profile, str):
                load_profile(_beside(path.parent, profile))
        except SiteError as also:
            raise SiteError(*error.problems, *also.problems) from None
        raise


def _beside(folder: Path, profile: str) -> str:
    """The name of a profile as it is, or the path of a profile of the operator's own, which is relative to `folder`."""
    return str(folder / profile) if profile.endswith((".yml", ".yaml")) else profile


def _require_flags(given: dict[str, Any]) -> None:
    missing = [
        Problem("command line", fault, remedy)
        for key, fault, remedy in (
            ("hosts", "no host is named", f"name hosts, or write a {SITE_FILE} ({paths.page('site.md')})"),
            ("profile", "no profile is named", "add --profile; `r1prov profiles` lists them"),
        )
        if key not in given
    ]
    if missing:
        raise SiteError(*missing)


def _files_beside(path: Path | None, file: SiteFile) -> SiteFile:
    """Make the paths of files on the controller absolute. The site file names them relative to itself.

    Raises:
        SiteError: files are missing or open to others, or a certificate or an archive is not usable. It carries every problem.
    """
    folder = path.parent if path else Path.cwd()
    sources = file.sources
    groups = {
        name: group.model_copy(update={"profile": _beside(folder, group.profile)}) if group.profile else group
        for name, group in file.groups.items()
    }
    profile = _beside(folder, file.profile)
    certificates = tuple(str(folder / name) for name in sources.ca_certificates)
    weights = tuple(
        source.model_copy(update={"token_file": str(folder / source.token_file)})
        if source.type == "hub" and source.token_file
        else source
        for source in sources.weights
    )
    hosts = tuple(
        host.model_copy(update={"identity_file": str(folder / Path(host.identity_file).expanduser())})
        if host.identity_file
        else host
        for host in file.hosts
    )
    gateway = file.gateway
    tls = gateway.tls if gateway else None
    if gateway and isinstance(tls, Certificate):
        tls = tls.model_copy(update={"chain": str(folder / tls.chain), "key": str(folder / tls.key)})
        gateway = gateway.model_copy(update={"tls": tls})
    wanted = [
        *certificates,
        *((tls.chain, tls.key) if isinstance(tls, Certificate) else ()),
        *(s.token_file for s in weights if s.type == "hub" and s.token_file),
        *(h.identity_file for h in hosts if h.identity_file),
    ]
    problems = fleet.faults(file)
    problems += [
        Problem(
            name, "this file does not exist", "the site file or a flag names it; paths are relative to the site file"
        )
        for name in wanted
        if not Path(name).is_file()
    ]
    beside = file.model_copy(
        update={
            "profile": profile,
            "groups": groups,
            "hosts": hosts,
            "gateway": gateway,
            "sources": sources.model_copy(update={"ca_certificates": certificates, "weights": weights}),
        }
    )
    problems += loose_files(path, beside)
    problems += _token_faults(weights)
    if gateway and not problems:
        problems += _certificate_faults(gateway)
    archives = {}
    for kind in ("llama_cpp", "ollama", "python"):
        archives[kind], faults = _archive_beside(folder, kind, getattr(sources, kind))
        problems += faults
    if problems:
        raise SiteError(*problems)
    return beside.model_copy(update={"sources": beside.sources.model_copy(update=archives)})


def _certificate_faults(gateway: Gateway) -> list[Problem]:
    """Why the gateway cannot serve with the operator's certificate, whose files exist; empty where it can."""
    if not isinstance(gateway.tls, Certificate):
        return []
    chain, key = (Path(name).read_text(errors="replace") for name in (gateway.tls.chain, gateway.tls.key))
    fault = certificate_fault(chain, key, gateway.server_name, datetime.now(UTC))
    return [Problem(gateway.tls.chain, *fault)] if fault else []


def _token_faults(weights: Iterable[WeightSource]) -> list[Problem]:
    """Why the tokens of hubs cannot be used, whose files exist; empty where they can."""
    problems = []
    for source in weights:
        if source.type != "hub" or not source.token_file or not Path(source.token_file).is_file():
            continue
        try:
            source.token()
        except (OSError, ValueError) as error:
            what = f"cannot be read: {error.strerror}" if isinstance(error, OSError) else str(error)
            problems.append(Problem(source.token_file, what, "write the hub's token, and nothing else, into this file"))
    return problems


def _archive_beside(folder: Path, kind: str, source: Archive) -> tuple[Archive, list[Problem]]:
    """A source with the full path and the digest of its archive, where that is a file on the controller, and what is wrong with it."""
    path = folder / source.archive
    if not source.archive:
        return source, []
    if not path.is_file():
        if re.match(r"https?://|/", source.archive):
            return source, [] if source.sha256 else [_unvouched(kind, source)]
        remedy = "name a URL, a file here, or an absolute path on the hosts"
        return source, [Problem(str(path), "this archive does not exist", remedy)]
    with path.open("rb") as content:
        digest = hashlib.file_digest(content, "sha256").hexdigest()
    if source.sha256 and digest != source.sha256:
        fault = f"its sha256 is {digest}, not what sources.{kind}.sha256 says"
        return source, [Problem(str(path), fault, "fetch the archive again, or correct the digest")]
    return source.model_copy(update={"archive": str(path), "sha256": digest}), []


def _unvouched(kind: str, source: Archive) -> Problem:
    """The problem of an archive that is not on this machine, and whose digest nobody has written down."""
    what = "nothing says which sha256 this archive must have, and where it comes from cannot vouch for it"
    remedy = f"write sources.{kind}.sha256, as whoever published the archive says it"
    return Problem(without_login(source.archive), what, remedy)


def _wanted(file: SiteFile) -> Profile:
    """The profile that a site file names, in which the keys of the file replace its own."""
    profile = load_profile(file.profile)
    wishes = {
        key: value
        for key, value in (
            ("quant", file.quant),
            ("context_per_slot", file.context_per_slot),
            ("slots", file.slots),
            ("first_token", file.first_token),
            ("attention", file.attention),
            ("kv_type_k", file.kv_type_k),
            ("workload", file.workload),
        )
        if value is not None
    }
    return profile.model_copy(update={"serving": profile.serving.model_copy(update=wishes)})
