#!/usr/bin/python
"""Ansible module r1.prov.open_webui_release: one installed Open-WebUI, and the link that says which one serves."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: open_webui_release
short_description: Installs Open-WebUI into a release folder and makes it the current one
description:
  - Makes the virtual environment C(HOME/releases/ID) from a requirements file with hashes, where ID is the version and a digest of
    the requirements and the Python. uv does it; it is fetched by its sha256 from the host's Python package index, as the wheels are.
  - C(HOME/current) is switched, atomically, only when the new one has told its version and its application has been imported.
    A failed installation leaves it alone. The current and the previous release are kept.
options:
  version:
    description: What the release must say it is.
    type: str
    required: true
  requirements:
    description: The requirements file on the host.
    type: path
    required: true
  requirements_sha256:
    description: Its sha256, so that check mode works where the file is only promised.
    type: str
    required: true
  python:
    description: The interpreter that the environment is made with.
    type: path
    required: true
  uv_version:
    description: Version of uv.
    type: str
    required: true
  uv_sha256:
    description: Sha256 of uv's wheel for Linux on x86-64.
    type: str
    required: true
  home:
    description: Holds C(releases) and C(current).
    type: path
    default: /opt/r1prov/open-webui
  cache:
    description:
      - Holds downloads. May be deleted at any time.
      - Where all wheels lie in its folder C(sources/wheels), uv's among them, the network is not touched.
    type: path
    default: /var/cache/r1prov
author:
  - The r1prov team
"""

EXAMPLES = r"""
- name: Install Open-WebUI
  r1.prov.open_webui_release:
    version: 0.12.4
    requirements: /opt/r1prov/open-webui/requirements.txt
    requirements_sha256: 832db0699007f1be95a7e41ef12e88926b02ba836461e36a36372db2760c1a2e
    python: /usr/bin/python3.11
    uv_version: 0.13.9
    uv_sha256: db5c8df7145c21ffea9c0f74e38823bac3af60cbadf0e26b8633f08627b17bab
"""

RETURN = r"""
release_id:
  description: The release that is current now, or would be.
  type: str
  returned: success
previous:
  description: The release that was current before; empty where there was none.
  type: str
  returned: success
installed:
  description: Whether an environment was made (or would be).
  type: bool
  returned: success
"""

import hashlib
import os
import re
import shutil
import subprocess
import tempfile
import zipfile
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.r1.prov.plugins.module_utils import releases
from ansible_collections.r1.prov.plugins.module_utils.download import (
    DownloadError,
    download,
    index_links,
    index_url,
    sha256_of,
    without_credentials,
)
from ansible_collections.r1.prov.plugins.module_utils.files import alone, whole_folder
from ansible_collections.r1.prov.plugins.module_utils.progress import Progress

_UNITS = {"B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}
_LOG_LINES = 8
_TRY = "import open_webui.main; from open_webui.env import VERSION; print(VERSION)"


class InstallError(Exception):
    """The release cannot be installed; the message says why and what to do next."""


def release_id(version: str, requirements_sha256: str, python: str) -> str:
    """The name of a release: what decides it, and nothing else."""
    return f"{version}-{hashlib.sha256(f'{requirements_sha256} {python}'.encode()).hexdigest()[:12]}"


def pinned(requirements: str) -> dict:
    """Project -> version, from the text of a requirements file; names as wheels spell them."""
    pins = re.findall(r"^([\w.-]+)(?:\[[^]]*\])?==([^\s;\\]+)", requirements, re.MULTILINE)
    return {re.sub(r"[-_.]+", "_", name).lower(): version for name, version in pins}


def fetched_bytes(line: str) -> tuple | None:
    """What uv says of a large download: (project, its bytes or 0 when it is there); None for other lines."""
    if begun := re.match(r"Downloading (\S+) \(([\d.]+)(B|KiB|MiB|GiB)\)", line):
        return begun[1], int(float(begun[2]) * _UNITS[begun[3]])
    if ended := re.match(r" Downloaded (\S+)", line):
        return ended[1], 0
    return None


def advice(said: str) -> str:
    """What to do about what uv complains of."""
    if "No space left" in said:
        return "The disk is full: free some space and run again."
    if "hash mismatch" in said.lower():
        return "The package index sends other files than the pinned ones; another index may be right (PIP_INDEX_URL)."
    if "not found in the package registry" in said or "no versions of" in said or "no version of" in said:
        return "The package index lacks it: another may have it (PIP_INDEX_URL), or correct open_webui_requirements."
    if re.search(r"error sending request|dns error|timed out|connect|certificate", said, re.IGNORECASE):
        return "Check PIP_INDEX_URL, the proxy and the host's network, then run again: it goes on where it was."
    return "Run again; what was fetched is kept."


class Release:
    """One wanted release on this host."""

    def __init__(self, parameters: dict) -> None:
        self.wanted = parameters
        self.home, self.cache = Path(parameters["home"]), Path(parameters["cache"])
        self.wheels = self.cache / "sources" / "wheels"
        self.id = release_id(parameters["version"], parameters["requirements_sha256"], parameters["python"])
        self.path = self.home / "releases" / self.id

    def install(self, progress: Progress) -> None:
        """Makes the environment beside its final place, tries it, and gives it its name."""
        progress.begin("waiting for an earlier installation", 0, "steps")
        with alone(self.home):
            if self.path.exists():
                return
            uv = self._uv(progress)
            with whole_folder(self.path) as folder:
                self._run(
                    [uv, "venv", "--quiet", "--relocatable", "--python", self.wanted["python"], str(folder)], progress
                )
                self._fill(uv, folder, progress)
                self._try(folder, progress)

    def _uv(self, progress: Progress) -> str:
        """The program uv, out of its verified wheel."""
        version, sha256 = self.wanted["uv_version"], self.wanted["uv_sha256"]
        here = [file for file in self.wheels.glob(f"uv-{version}-*x86_64*.whl") if sha256_of(file) == sha256]
        if not here:
            index = index_url()
            links = index_links(index, "uv")
            names = [name for name in links if re.match(rf"uv-{re.escape(version)}-.*manylinux.*x86_64.*\.whl$", name)]
            if not names:
                raise InstallError(
                    f"the package index {without_credentials(index)} has no uv {version}; another may (PIP_INDEX_URL)"
                )
            self.wheels.mkdir(parents=True, exist_ok=True)
            here = [self.wheels / names[0]]
            download(links[names[0]], here[0], [sha256], progress)
        program = self.cache / f"uv-{version}"
        with (
            zipfile.ZipFile(here[0]) as wheel,
            wheel.open(f"uv-{version}.data/scripts/uv") as packed,
            tempfile.NamedTemporaryFile(dir=program.parent, delete=False) as new,
        ):
            shutil.copyfileobj(packed, new, 1 << 20)
        Path(new.name).chmod(0o755)
        Path(new.name).replace(program)
        return str(program)

    def _fill(self, uv: str, environment: Path, progress: Progress) -> None:
        """Installs the pinned wheels."""
        pins = pinned(Path(self.wanted["requirements"]).read_text(encoding="utf-8"))
        command = [
            uv,
            "pip",
            "sync",
            "--python",
            f"{environment}/bin/python",
            "--require-hashes",
            "--only-binary",
            ":all:",
        ]
        here = {tuple(file.name.lower().split("-")[:2]) for file in self.wheels.glob("*.whl")}
        if here.issuperset(pins.items()):
            command += ["--offline", "--no-index", "--find-links", str(self.wheels)]
        self._run([*command, self.wanted["requirements"]], progress)

    def _run(self, command: list, progress: Progress) -> None:
        """Runs uv; what it says it downloads is the progress."""
        environment = {
            **os.environ,
            "UV_CACHE_DIR": str(self.cache / "uv"),
            "UV_DEFAULT_INDEX": index_url(),
            "UV_NO_CONFIG": "1",
            "UV_PYTHON_DOWNLOADS": "never",
            "UV_SYSTEM_CERTS": "1",
            "UV_HTTP_TIMEOUT": "60",
            "NO_COLOR": "1",
        }
        if "PIP_CERT" in environment:
            environment.setdefault("SSL_CERT_FILE", environment["PIP_CERT"])
        lines, sizes, done = [], {}, set()
        progress.begin("installing", 0, "bytes")
        # Whatever serves on this host goes first.
        with subprocess.Popen(
            ["nice", "-n", "10", *command],
            env=environment,
            text=True,
            errors="replace",
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        ) as process:
            for line in process.stdout or ():
                lines.append(line.rstrip())
                if found := fetched_bytes(line):
                    project, size = found
                    if size:
                        sizes[project] = size
                    else:
                        done.add(project)
                    progress.update(sum(sizes.get(name, 0) for name in done), sum(sizes.values()))
        if process.returncode:
            said = without_credentials("\n".join(lines[-_LOG_LINES:]))
            raise InstallError(f"{said}\n{advice(said)}")

    def _try(self, environment: Path, progress: Progress) -> None:
        """The programs run here: the version is the wanted one, and the application with all its libraries can be imported.

        It is imported as the service will import it, which also leaves the compiled modules that the service cannot write.
        """
        progress.begin("trying it", 0, "steps")
        with tempfile.TemporaryDirectory() as scratch:
            variables = {
                "PATH": "/usr/bin:/bin",
                "HOME": scratch,
                "DATA_DIR": scratch,
                "STATIC_DIR": f"{scratch}/static",
                "FROM_INIT_PY": "true",  # as its own program does it
                "WEBUI_SECRET_KEY": "unused",
                "HF_HUB_OFFLINE": "1",
                "OFFLINE_MODE": "True",
            }
            done = subprocess.run(
                [f"{environment}/bin/python", "-c", _TRY],
                env=variables,
                cwd=scratch,
                capture_output=True,
                text=True,
                errors="replace",
                check=False,
            )
        if done.returncode:
            said = "\n".join(done.stderr.strip().splitlines()[-_LOG_LINES:])
            raise InstallError(f"the new Open-WebUI does not run here (status {done.returncode}): {said}")
        version = done.stdout.split()[-1]
        if version != self.wanted["version"]:
            raise InstallError(
                f"it says it is {version}, not {self.wanted['version']}. "
                "Correct open_webui_version or open_webui_requirements."
            )


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "version": {"type": "str", "required": True},
            "requirements": {"type": "path", "required": True},
            "requirements_sha256": {"type": "str", "required": True},
            "python": {"type": "path", "required": True},
            "uv_version": {"type": "str", "required": True},
            "uv_sha256": {"type": "str", "required": True},
            "home": {"type": "path", "default": "/opt/r1prov/open-webui"},
            "cache": {"type": "path", "default": "/var/cache/r1prov"},
        },
        supports_check_mode=True,
    )
    os.umask(0o022)  # the service's user must be able to read what lies here, whatever root's habits are
    release = Release(module.params)
    previous = releases.current(release.home)
    installed = not release.path.exists()
    result = {
        "changed": installed or previous != release.id,
        "release_id": release.id,
        "previous": previous,
        "installed": installed,
        "diff": releases.switch_diff(release.home, previous, release.id),
    }
    if not result["changed"] or module.check_mode:
        module.exit_json(**result)
    progress = Progress("open_webui")
    try:
        release.install(progress)
        releases.make_current(release.home, release.id)
    except (InstallError, DownloadError, OSError) as error:
        progress.finish(failed=True)
        serving = f"{previous} stays current." if previous else "Nothing was installed."
        module.fail_json(msg=f"Open-WebUI {release.id} cannot be installed: {error}\n{serving}")
    progress.finish()
    module.exit_json(**result)


if __name__ == "__main__":
    main()
