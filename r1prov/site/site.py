"""Everything that the operator asked for, as one value."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import Field

from r1prov.common.documents import Keys
from r1prov.machines.profile import Profile
from r1prov.site.keys import SiteFile

if TYPE_CHECKING:
    from r1prov.site.host import Host


class Site(Keys):
    """The site file with the flags applied, and the profile with the site file applied."""

    path: Path | None
    """The site file, whose folder holds the state; None where there is no file."""
    file: SiteFile
    profile: Profile
    chosen: dict[str, dict[str, str]] = Field(default={})
    """The versions that were chosen for single hosts by `upgrade` or `rollback`: by host, keys of `versions`. Others are the file's."""
    groups: dict[str, Site] = Field(default={})
    """By its name, the site as it is for the hosts of a group."""

    def of(self, host: str) -> Site:
        """The site as it is for one host: with the keys of its group, and the versions that were chosen for it."""
        base = self.of_group_of(host)
        versions = base.file.versions.model_copy(update=self.chosen.get(self.builds_as(host), {}))
        file = base.file.model_copy(update={"versions": versions})
        return base.model_copy(update={"file": file, "chosen": {}, "groups": {}})

    def of_group_of(self, host: str) -> Site:
        """The site as it is for all hosts of the group of one; for a host that is in none, as it is for those."""
        return self.groups.get(self.group_of(host) or "", self.own)

    @property
    def own(self) -> Site:
        """The site as it is for hosts that are in no group.

        Where every engine is in a group, that is as it is for the first group, because door and page have to know what is served.
        """
        in_none = any(host.group not in self.groups for host in self.file.those("engine"))
        return self if in_none or not self.groups else next(iter(self.groups.values()))

    def builds_as(self, host: str) -> str:
        """The name of the host whose versions a host has: a worker those of its engine, because the two speak with the same build only."""
        coordinator = next((self.file.coordinator_of(each) for each in self.hosts if each.name == host), None)
        return coordinator.name if coordinator else host

    def group_of(self, host: str) -> str | None:
        """The name of a host's group; None where it is in none."""
        return next((each.group for each in self.hosts if each.name == host), None)

    def with_file(self, file: SiteFile) -> Site:
        """The site with other keys, in its groups, too. What is known of profiles stays."""
        groups = {
            name: group.model_copy(update={"file": file.of_group(name)})
            for name, group in self.groups.items()
            if name in file.groups
        }
        return self.model_copy(update={"file": file, "groups": groups})

    def written_versions(self, host: str) -> frozenset[str]:
        """The keys of `versions` that a site file has for a host, in a site that was read from it. They outrank what was chosen."""
        return frozenset(self.of_group_of(host).file.versions.model_fields_set) if self.path else frozenset()

    @property
    def hosts(self) -> tuple[Host, ...]:
        """The servers."""
        return self.file.hosts

    @property
    def name(self) -> str:
        """The name of this site in outputs."""
        return self.path.parent.name if self.path else "default"
