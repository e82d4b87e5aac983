"""A release of llama.cpp, compiled on the host that runs it."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ansible_collections.r1.prov.plugins.module_utils import release
from ansible_collections.r1.prov.plugins.module_utils.artefact import Artefact, unpack, without_credentials
from ansible_collections.r1.prov.plugins.module_utils.git import remote
from ansible_collections.r1.prov.plugins.module_utils.host_probe import memory_bytes, usable_threads
from ansible_collections.r1.prov.plugins.module_utils.llama_cpp import (
    TARGETS,
    cmake_flags,
    cpu_identity,
    first_error,
    ninja_step,
    release_id,
    remedy,
)
from ansible_collections.r1.prov.plugins.module_utils.release import ReleaseError
from ansible_collections.r1.prov.plugins.module_utils.sourced import SourcedError, variables

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ansible_collections.r1.prov.plugins.module_utils.progress import Progress

_JOB_MEMORY_BYTES = 2 << 30  # what one compiler of CUDA kernels takes at its worst


class LlamaCpp(release.Build):
    """llama.cpp, with everything that decides how it is built.

    Args:
        wanted: the option `llama_cpp` of the module `release`.
        version: the label of the release, which the server calls its build.
        cache: the folder for sources, the build tree, its log and ccache.
    """

    def __init__(self, wanted: dict[str, Any], version: str, cache: Path) -> None:
        self._wanted, self._version, self._cache = wanted, version, cache
        self.tree = cache / "build" / "llama.cpp"  # always the same place, so that ccache knows it again
        self._log = cache / "build" / "llama.cpp.log"
        self._commit = wanted["git_commit"] or wanted["git_ref"]
        self._cuda_root = os.path.realpath(wanted["cuda_root"])
        cpu = cpu_identity(Path("/proc/cpuinfo").read_text(encoding="utf-8"))
        self.flags = cmake_flags(
            backend=wanted["backend"],
            architectures=wanted["cuda_architectures"],
            cuda_root=self._cuda_root,
            libcuda=_libcuda() if wanted["backend"] == "cuda" else None,
            amx=any(name.startswith("amx") for name in cpu["instructions"]),
            rpc=wanted["rpc"],
            label=version,
        )
        self.record = {
            "source": self._source(),
            "flags": self.flags,
            "targets": TARGETS,
            "cpu": cpu,
            "compiler": _output(["c++", "-dumpfullversion"]),
            "nvcc": self._nvcc_version(),
        }
        self.id = release_id(version, wanted["backend"], self.record)

    def _source(self) -> list[str]:
        if self._wanted["source"] == "git":
            return ["git", without_credentials(self._wanted["git_url"]), self._commit]
        return ["archive", self._wanted["sha256"]]

    def _nvcc_version(self) -> str:
        if self._wanted["backend"] != "cuda":
            return ""
        match = re.search(r"\bV([\d.]+)", _output([f"{self._cuda_root}/bin/nvcc", "--version"]))
        return match[1] if match else ""

    def fill(self, folder: Path, progress: Progress) -> None:
        """Compiles, and installs the programs once the server has said its version."""
        started = time.monotonic()
        source = self.configure(progress)
        targets = [*TARGETS, *([_rpc_target(source)] if self._wanted["rpc"] else [])]
        self.compile(targets, progress)
        (folder / "bin").mkdir()
        for target in targets:
            shutil.copy2(self.tree / "build" / "bin" / target, folder / "bin" / target)
        shutil.rmtree(self.tree)
        said = release.tried([folder / "bin" / "llama-server", "--version"])
        if self._version not in said:
            raise ReleaseError(f"the new llama-server does not say that it is {self._version}: {said.strip()}")
        self.record["cmake"] = _output(["cmake", "--version"]).partition("\n")[0]
        self.record["built_unix_s"] = round(time.time())
        self.record["build_s"] = round(time.monotonic() - started, 1)

    def configure(self, progress: Progress) -> Path:
        """Makes a fresh build tree.

        Returns:
            The source's folder.
        """
        self._check_tools()
        shutil.rmtree(self.tree, ignore_errors=True)
        self.tree.mkdir(parents=True)
        source = self._fetch_git(progress) if self._wanted["source"] == "git" else self._unpack(progress)
        self._log.unlink(missing_ok=True)
        progress.begin("configuring", 0, "steps")
        self._run(["cmake", "-S", source, "-B", self.tree / "build", "-G", "Ninja", *self.flags], progress)
        return source

    def compile(self, targets: list[str], progress: Progress) -> None:
        """Makes targets in the configured build tree."""
        progress.begin("compiling", 0, "steps")
        self._run(["ninja", "-C", self.tree / "build", "-j", str(self._jobs()), *targets], progress)

    def _check_tools(self) -> None:
        missing = [tool for tool in ("c++", "cmake", "ninja", "ccache") if not shutil.which(tool)]
        if self._wanted["source"] == "git" and not shutil.which("git"):
            missing.append("git")
        if missing:
            raise ReleaseError(f"{', '.join(missing)} not installed. The role build_deps installs what a build needs.")
        if self._wanted["backend"] == "cuda" and not self.record["nvcc"]:
            raise ReleaseError(
                f"no CUDA compiler at {self._wanted['cuda_root']}/bin/nvcc. The role cuda_toolkit installs one."
            )

    def _unpack(self, progress: Progress) -> Path:
        """The tree of llama.cpp alone, out of whatever the archive has around it."""
        pypi = self._wanted["source"] == "pypi"
        source = f"pypi:llama-cpp-python=={self._version}" if pypi else self._wanted["archive"]
        variable = "llama_cpp_version" if pypi else "llama_cpp_archive"
        archive = Artefact(source, self._wanted["sha256"], variable, ".tar.gz").fetch(self._cache / "sources", progress)
        around = self.tree / "archive"
        around.mkdir()
        unpack(archive, around)
        # A path that only llama.cpp has: a release archive has it at the top, the sdist below vendor/.
        found = min(around.glob("**/tools/server/CMakeLists.txt"), key=lambda path: len(path.parts), default=None)
        if found is None:
            raise ReleaseError(f"{archive} holds no llama.cpp source tree. Correct llama_cpp_archive.")
        # The tree of every archive gets the same place, so that ccache knows the files that did not change between versions.
        return found.parents[2].rename(self.tree / "source")

    def _fetch_git(self, progress: Progress) -> Path:
        """A checkout of exactly the pinned commit. What was fetched once is kept in the cache."""
        repository, ref = self._cache / "sources" / "llama.cpp.git", self._wanted["git_ref"]
        url, login = remote(self._wanted["git_url"])
        progress.begin("fetching", 0, "steps")
        if not repository.exists():
            self._git("init", "--quiet", "--bare", str(repository))
        git, local = ("--git-dir", str(repository)), f"refs/r1prov/{self._commit}"
        if not _output(["git", *git, "rev-parse", "--verify", "--quiet", local]):
            asked = ref if ref == self._commit else f"refs/tags/{ref}"
            fetch = ("fetch", "--quiet", "--no-tags", "--depth", "1", "--", url, f"+{asked}:refs/r1prov/fetched")
            try:
                way = variables(self._wanted["environment_file"])
            except SourcedError as error:
                raise ReleaseError(f"{error}. Correct llama_cpp_environment_file.") from error
            self._git(*git, *fetch, variables=way | login)
            found = _output(["git", *git, "rev-parse", "--verify", "refs/r1prov/fetched^{commit}"])
            if found != self._commit:
                raise ReleaseError(
                    f"the tag {ref} of {url} is commit {found} now, and was {self._commit} when it was seen first. A tag that moved is "
                    "not taken. If its publisher says why it moved, correct llama_cpp_git_commit, which `r1prov up` takes from "
                    f".r1prov/pins/llama.cpp-{ref}.commit."
                )
            self._git(*git, "update-ref", local, found)
        source = self.tree / "source"
        source.mkdir()
        self._git(*git, "--work-tree", str(source), "checkout", "--quiet", "--force", local, "--", ".")
        return source

    def _git(self, *arguments: str, variables: Mapping[str, str] | None = None) -> None:
        environment = {**os.environ, **(variables or {})}
        done = subprocess.run(["git", *arguments], env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            raise ReleaseError(
                f"{without_credentials(done.stderr.strip())}. Check llama_cpp_git_url, and that llama_cpp_git_ref "
                f"({self._wanted['git_ref']}) is a tag or a full commit; branches move and are not taken."
            )

    def _jobs(self) -> int:
        return int(self._wanted["jobs"]) or max(1, min(usable_threads(), memory_bytes() // _JOB_MEMORY_BYTES))

    def _run(self, command: list[Any], progress: Progress) -> None:
        """Runs one tool of the build. Its output goes to the log, and its counter to the progress."""
        environment = {
            # ccache keeps objects of each locale apart, whatever LC_ALL says.
            **{name: value for name, value in os.environ.items() if name != "LANG" and not name.startswith("LC_")},
            "LC_ALL": "C",
            "NINJA_STATUS": "[%f/%t] ",
            "CCACHE_DIR": str(self._cache / "ccache"),
            "CCACHE_BASEDIR": str(self.tree),
            # A toolkit that is installed again has new time stamps but the same compiler.
            "CCACHE_COMPILERCHECK": "content",
        }
        # The services on this host go first.
        command = ["nice", "-n", "10", *map(str, command)]
        lines: list[str] = []
        with (
            self._log.open("a", encoding="utf-8") as log,
            subprocess.Popen(
                command, env=environment, text=True, errors="replace", stdout=subprocess.PIPE, stderr=subprocess.STDOUT
            ) as process,
        ):
            for line in process.stdout or ():
                log.write(line)
                lines.append(line.rstrip())
                if step := ninja_step(line):
                    progress.update(*step)
        if process.returncode:
            why = first_error(lines)
            raise ReleaseError("\n".join(["the build failed:", *why, remedy(why, str(self._log))]))


def _output(command: list[str]) -> str:
    """What a program prints; empty where the program is not there or fails."""
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""


def _libcuda() -> str | None:
    """The driver's library, where this host has a driver."""
    match = re.search(r"libcuda\.so\.1 \(libc6,x86-64.*\) => (\S+)", _output(["/sbin/ldconfig", "-p"]))
    return match[1] if match else None


def _rpc_target(source: Path) -> str:
    """The name of the RPC server, which differs between versions."""
    text = (source / "tools/rpc/CMakeLists.txt").read_text(encoding="utf-8")
    name = re.search(r"set\(TARGET ([\w-]+)\)", text)
    if not name:
        raise ReleaseError("this version of llama.cpp names no RPC server. Set llama_cpp_rpc to false.")
    return name[1]
