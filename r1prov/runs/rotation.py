"""New secrets in the place of old ones, on this machine and on the hosts."""

from __future__ import annotations

from typing import TYPE_CHECKING

from r1prov.common.errors import R1provError
from r1prov.site.state import Secret, SiteState

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from r1prov.runs.run import Done
    from r1prov.site import Site


def rotate(site: Site, secrets: Iterable[Secret], converge: Callable[[], Done]) -> tuple[Done, bool]:
    """Make secrets anew and give them to the hosts. The old ones come back where no host has taken a new one.

    Args:
        site: whose.
        secrets: which of its secrets.
        converge: brings all hosts to what the site wants.

    Returns:
        the run, and whether the secrets are others now.

    Raises:
        R1provError: the run could not begin.
    """
    state = SiteState.of(site.path)
    before = {secret: _kept(state, secret) for secret in secrets}
    for secret in before:
        state.keep_secret(secret)
    try:
        done = converge()
    except R1provError:  # Nobody was met, so nobody has a new one.
        _put_back(state, before)
        raise
    if done.error and not done.report.changed_hosts:
        _put_back(state, before)
        return done, False
    return done, True


def _kept(state: SiteState, secret: Secret) -> str | None:
    path = state.secret(secret)
    return path.read_text() if path.is_file() else None


def _put_back(state: SiteState, before: Mapping[Secret, str | None]) -> None:
    """A secret that was not there before goes, too: it may be on a host, which the next run asks."""
    for secret, value in before.items():
        if value is None:
            state.secret(secret).unlink()
        else:
            state.keep_secret(secret, value)
