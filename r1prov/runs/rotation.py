"""A new secret in the place of an old one, on this machine and on the hosts."""

from __future__ import annotations

from typing import TYPE_CHECKING

from r1prov.common.errors import R1provError
from r1prov.site.state import API_KEY, SiteState

if TYPE_CHECKING:
    from collections.abc import Callable

    from r1prov.runs.run import Done
    from r1prov.site import Site


def rotate_api_key(site: Site, converge: Callable[[], Done]) -> tuple[Done, bool]:
    """Make a new API key and give it to the hosts. The old one comes back where no host has taken the new one.

    Args:
        site: whose.
        converge: brings all hosts to what the site wants.

    Returns:
        the run, and whether the key is another one now.

    Raises:
        R1provError: the run could not begin.
    """
    state = SiteState.of(site.path)
    before = state.secret(API_KEY).read_text() if state.secret(API_KEY).is_file() else None
    state.keep_secret(API_KEY)
    try:
        done = converge()
    except R1provError:  # Nobody was met, so nobody has the new key.
        state.keep_secret(API_KEY, before)
        raise
    if done.error and before and not done.report.changed_hosts:
        state.keep_secret(API_KEY, before)
        return done, False
    return done, True
