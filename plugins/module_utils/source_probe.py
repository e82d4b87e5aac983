"""Whether a source answers this host. Any HTTP answer of the server itself shows that the way is open, also 401, 403 and 404.

Python's own HTTP client asks. It follows the proxy variables of the environment, as pip and the downloader do.
"""

from __future__ import annotations

import glob
import os
import ssl
import threading
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ansible_collections.r1.prov.plugins.module_utils.artefact import index_url, without_credentials
from ansible_collections.r1.prov.plugins.module_utils.sourced import SourcedError, variables

if TYPE_CHECKING:
    from collections.abc import Mapping

PROXY_REMEDY = "check the proxy (http_proxy, https_proxy, no_proxy) in the site's sources"
CA_REMEDY = (
    "if a proxy in between opens TLS, name its CA file in the site's sources (`ca_certificates`); "
    "else the source is not who it says"
)


def out_of_reach(needs: list[dict[str, Any]], ca_pem: str, limit_s: float) -> list[dict[str, Any]]:
    """The needs that no source answers for. All sources are asked at once, except those of a need that is met on the host already.

    Args:
        needs: for each, `what` in words; `any_of`, the sources of which one is enough, where `pypi:NAME` is a project on the package index;
            `have`, patterns of paths: the need is met where each of them matches something; `environment_file`, a script of this host
            that is sourced before its sources are asked, or nothing.
        ca_pem: certificates to trust beside the host's own, in PEM; may be empty.
        limit_s: how long to wait for all of them together.

    Returns:
        One dict for each need that cannot be met: `what`, and `tried`, a dict for each source as `silent` returns it.
    """
    unmet = [need for need in needs if not (need["have"] and all(map(glob.glob, need["have"])))]
    scripts = list(dict.fromkeys(need["environment_file"] for need in unmet))
    with ThreadPoolExecutor(max(1, len(scripts))) as pool:
        groups = {
            script: pool.submit(
                _dead, [need for need in unmet if need["environment_file"] == script], ca_pem, limit_s, script
            )
            for script in scripts
        }
    found = []
    for need in unmet:
        dead = groups[need["environment_file"]].result()
        tried = [dead.get(each) or dead.get("") for each in map(address, need["any_of"])]
        if all(tried):
            found.append({"what": need["what"], "tried": list({id(each): each for each in tried}.values())})
    return found


def _dead(needs: list[dict[str, Any]], ca_pem: str, limit_s: float, script: str) -> dict[str, dict[str, str]]:
    """The sources of these needs that do not answer, as `silent` returns them. Where the script fails, that stands there instead."""
    try:
        environment = variables(script)
    except SourcedError as error:
        remedy = "correct `environment_file` in the site's sources, or the script"
        return {"": {"asked": script, "source": script, "problem": str(error), "remedy": remedy}}
    sources = [source for need in needs for source in map(address, need["any_of"])]
    return {answer["asked"]: answer for answer in silent(sources, ca_pem, limit_s, environment)}


def address(source: str) -> str:
    """The address of a source. `pypi:NAME` is the page of a project on the package index that pip uses here."""
    if not source.startswith("pypi:"):
        return source
    return f"{index_url().rstrip('/')}/{source.removeprefix('pypi:')}/"


def silent(
    sources: list[str], ca_pem: str, limit_s: float, environment: Mapping[str, str] | None = None
) -> list[dict[str, Any]]:
    """The sources (http, https and `file://` URLs, absolute paths) that do not answer.

    Args:
        sources: their addresses.
        ca_pem: certificates to trust beside the host's own, in PEM; may be empty.
        limit_s: how long to wait for all of them together.
        environment: variables beside those of this process, among which may be proxies.

    Returns:
        One dict for each: `asked`, `source` (the same without a password), `problem`, `remedy`.
    """
    answers: dict[str, tuple[str, str] | None] = {}
    handlers = [
        urllib.request.HTTPSHandler(context=_tls(ca_pem)),
        _NoRedirect(),
        _Proxies({**os.environ, **(environment or {})}),
    ]
    opener = urllib.request.build_opener(*handlers)
    end = time.monotonic() + limit_s

    def ask(source: str) -> None:
        is_path = source.startswith(("/", "file://"))
        answers[source] = _ask_path(source) if is_path else _ask(opener, source, limit_s)

    # The threads are daemons, not a pool's: a name server that does not answer must not hold up the end of the process.
    threads = [threading.Thread(target=ask, args=(source,), daemon=True) for source in sources]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(max(0.0, end - time.monotonic()))
    remedy = "check the address, the network, a firewall; a mirror may be nearer"
    late = f"no answer within {limit_s:.0f} s", remedy
    return [
        {"asked": source, "source": without_credentials(source), "problem": fault[0], "remedy": fault[1]}
        for source in sources
        if (fault := answers.get(source, late))
    ]


def _ask_path(source: str) -> tuple[str, str] | None:
    path = Path(source.removeprefix("file://"))
    if not path.exists():
        return "there is no such file or folder on the host", "copy it there, mount its disk, or mend the path"
    return None if os.access(path, os.R_OK) else ("it cannot be read", "mend its permissions")


def _ask(opener: urllib.request.OpenerDirector, source: str, limit_s: float) -> tuple[str, str] | None:
    # The module refuses every scheme but http and https. urllib takes no login in an address, and an answer that wants one is an answer.
    address_ = without_credentials(source)
    request = urllib.request.Request(address_, method="HEAD", headers={"User-Agent": "r1prov-preflight"})  # noqa: S310
    try:
        opener.open(request, timeout=limit_s).close()
    except urllib.error.HTTPError as error:
        if error.code == 407:
            return "the proxy wants a login (407)", PROXY_REMEDY
        if error.code in (502, 503, 504):
            return f"{error.code} {error.reason}", f"try later or use a mirror; behind a proxy, {PROXY_REMEDY}"
        return None
    except (OSError, ValueError) as error:
        return _explain(getattr(error, "reason", error))
    return None


def _explain(reason: object) -> tuple[str, str]:
    """What went wrong on the way, and what to do."""
    text = str(reason)
    if isinstance(reason, ssl.SSLCertVerificationError):
        if "expired" in text or "not yet valid" in text:
            return f"its certificate is not valid now ({reason.verify_message})", "check the clock of the host first"
        if "match" in text or "not valid for" in text:
            return f"its certificate is another's ({reason.verify_message})", "check the address, and who answers there"
        return f"its certificate is signed by an authority this host does not know ({reason.verify_message})", CA_REMEDY
    if "Tunnel connection failed" in text:
        return f"the proxy refuses it ({text.partition(': ')[2]})", PROXY_REMEDY
    if "Name or service not known" in text or "name resolution" in text or "No address" in text:
        return "its name cannot be resolved", "check the address, and DNS on the host (/etc/resolv.conf)"
    return getattr(reason, "strerror", None) or text, "check the address, the network, a firewall or the proxy"


def _tls(ca_pem: str) -> ssl.SSLContext:
    context = ssl.create_default_context()
    if ca_pem:
        context.load_verify_locations(cadata=ca_pem)
    paths = ssl.get_default_verify_paths()
    if not paths.cafile and not (paths.capath and any(Path(paths.capath).glob("*.0"))):
        # A bare host has no list of authorities before build_deps installs it. Until then only the way can be tried.
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


class _Proxies(urllib.request.ProxyHandler):
    """The proxies of given variables, and not of those of this process."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        # As everywhere, the name in small letters counts first.
        named = sorted(
            (name, value) for name, value in environment.items() if name.lower().endswith("_proxy") and value
        )
        given = {name.lower().removesuffix("_proxy"): value for name, value in named}
        self._bypass = {"no": given.pop("no", "")}
        super().__init__(given)

    def proxy_open(self, req: urllib.request.Request, proxy: str, type: str) -> Any:  # noqa: A002 - urllib gives it by this name
        """Goes without a proxy to hosts for which there is none."""
        if req.host and urllib.request.proxy_bypass_environment(req.host, self._bypass):  # type: ignore[attr-defined]
            return None
        return super().proxy_open(req, proxy, type)


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirect is an answer too. The address that it names is not asked."""

    def redirect_request(self, *_: object) -> None:
        return None
