"""Builds llama.cpp on a host: fetch, unpack, configure, compile, install, switch."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import tarfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from ansible_collections.r1.prov.plugins.module_utils.download import (
    download,
    index_links,
    index_url,
    sha256_of,
    without_credentials,
)
from ansible_collections.r1.prov.plugins.module_utils.files import whole_folder
from ansible_collections.r1.prov.plugins.module_utils.llama_cpp import (
    TARGETS,
    cmake_flags,
    cpu_identity,
    first_error,
    ninja_step,
    release_id,
    remedy,
)

if TYPE_CHECKING:
    from ansible_collections.r1.prov.plugins.module_utils.progress import Progress

_JOB_MEMORY_BYTES = 2 << 30  # what one compiler of CUDA kernels takes at its worst


class BuildError(Exception):
    """The release cannot be built; the message says why and what to do next."""


class Release:
    """One wanted release on this host: where it lies, what decides it, how it is built."""

    def __init__(self, parameters: dict[str, Any]) -> None:
        self.wanted = parameters
        self.home = Path(parameters["home"])
        self.cache = Path(parameters["cache"])
        self.tree = self.cache / "build" / "llama.cpp"  # always the same place, so that ccache knows it again
        self.log = self.cache / "build" / "llama.cpp.log"
        self.cuda_root = os.path.realpath(parameters["cuda_root"])
        cpu = cpu_identity(Path("/proc/cpuinfo").read_text(encoding="utf-8"))
        self.flags = cmake_flags(
            backend=parameters["backend"],
            architectures=parameters["cuda_architectures"],
            cuda_root=self.cuda_root,
            libcuda=_libcuda() if parameters["backend"] == "cuda" else None,
            amx=any(name.startswith("amx") for name in cpu["instructions"]),
            rpc=parameters["rpc"],
            label=parameters["version"],
        )
        self.decides = {
            "source": self._source(),
            "flags": self.flags,
            "targets": TARGETS,
            "cpu": cpu,
            "compiler": _output(["c++", "-dumpfullversion"]),
            "nvcc": self._nvcc_version(),
        }
        self.id = release_id(parameters["version"], parameters["backend"], self.decides)
        self.path = self.home / "releases" / self.id

    def _source(self) -> list[str]:
        if self.wanted["source"] == "git":
            return ["git", without_credentials(self.wanted["git_url"]), self.wanted["git_ref"]]
        return ["archive", self.wanted["sha256"]]

    def _nvcc_version(self) -> str:
        if self.wanted["backend"] != "cuda":
            return ""
        match = re.search(r"\bV([\d.]+)", _output([f"{self.cuda_root}/bin/nvcc", "--version"]))
        return match[1] if match else ""

    @property
    def exists(self) -> bool:
        """Whether it is built: its record is written before the folder gets its name, so this is a whole release."""
        return (self.path / "release.json").exists()

    def build(self, progress: Progress) -> float:
        """Fetches, compiles and installs. The current release is not touched.

        Returns:
            The seconds it took.
        """
        started = time.monotonic()
        source = self.configure(progress)
        targets = [*TARGETS, *([_rpc_target(source)] if self.wanted["rpc"] else [])]
        self.compile(targets, progress)
        seconds = time.monotonic() - started
        self._install(targets, seconds)
        shutil.rmtree(self.tree)
        return seconds

    def configure(self, progress: Progress) -> Path:
        """Makes a fresh build tree.

        Returns:
            The source's folder.
        """
        self._check_tools()
        shutil.rmtree(self.tree, ignore_errors=True)
        self.tree.mkdir(parents=True)
        source = self._fetch_git(progress) if self.wanted["source"] == "git" else self._unpack(self._fetch(progress))
        self.log.unlink(missing_ok=True)
        progress.begin("configuring", 0, "steps")
        self._run(["cmake", "-S", source, "-B", self.tree / "build", "-G", "Ninja", *self.flags], progress)
        return source

    def compile(self, targets: list[str], progress: Progress) -> None:
        """Makes targets in the configured build tree."""
        progress.begin("compiling", 0, "steps")
        self._run(["ninja", "-C", self.tree / "build", "-j", str(self._jobs()), *targets], progress)

    def _check_tools(self) -> None:
        missing = [tool for tool in ("c++", "cmake", "ninja", "ccache") if not shutil.which(tool)]
        if self.wanted["source"] == "git" and not shutil.which("git"):
            missing.append("git")
        if missing:
            raise BuildError(f"{', '.join(missing)} not installed. The role build_deps installs what a build needs.")
        if self.wanted["backend"] == "cuda" and not self.decides["nvcc"]:
            raise BuildError(
                f"no CUDA compiler at {self.wanted['cuda_root']}/bin/nvcc. The role cuda_toolkit installs one."
            )

    def _fetch(self, progress: Progress) -> Path:
        """The source archive, verified; without the network where it already lies here."""
        archive = self.wanted["archive"]
        if self.wanted["source"] == "pypi":
            archive = f"llama_cpp_python-{self.wanted['version']}.tar.gz"
        elif "://" not in archive:
            return self._local_archive(Path(archive))
        kept = self.cache / "sources" / urlsplit(archive).path.rpartition("/")[2]
        if kept.exists() and sha256_of(kept) == self.wanted["sha256"]:
            return kept
        kept.parent.mkdir(parents=True, exist_ok=True)
        url = archive
        if self.wanted["source"] == "pypi":
            index = index_url()
            url = index_links(index, "llama-cpp-python").get(archive, "")
            if not url:
                raise BuildError(
                    f"the package index {without_credentials(index)} has no {archive}. Correct llama_cpp_version."
                )
        download(url, kept, [self.wanted["sha256"]], progress)
        return kept

    def _local_archive(self, file: Path) -> Path:
        if not file.is_file():
            raise BuildError(f"{file} is not there, neither here nor on the controller. Correct llama_cpp_archive.")
        found = sha256_of(file)
        if found != self.wanted["sha256"]:
            raise BuildError(
                f"{file} has sha256 {found}, expected {self.wanted['sha256']}. "
                "Fetch the archive again, or correct llama_cpp_archive_sha256."
            )
        return file

    def _unpack(self, archive: Path) -> Path:
        """The tree of llama.cpp alone, out of whatever the archive has around it."""
        try:
            with tarfile.open(archive) as tar:
                names = [member.name for member in tar.getmembers()]
                # A path that only llama.cpp has; a release archive has it at the top, the sdist below vendor/.
                roots = [name.removesuffix("tools/server/CMakeLists.txt") for name in names]
                roots = [root for root, name in zip(roots, names, strict=True) if root != name]
                if not roots:
                    raise BuildError(f"{archive} holds no llama.cpp source tree. Correct llama_cpp_archive.")
                root = min(roots, key=len)
                inside = [member for member in tar.getmembers() if member.name.startswith(root)]
                if hasattr(tarfile, "data_filter"):
                    tar.extraction_filter = tarfile.data_filter
                tar.extractall(self.tree / "archive", members=inside)  # noqa: S202 - its sha256 is the operator's
        except (tarfile.TarError, EOFError) as error:
            raise BuildError(f"{archive} is not a whole tar archive: {error}. Fetch it again.") from error
        # Every archive's tree gets the same place, so that ccache knows the files that did not change between versions.
        source = self.tree / "source"
        (self.tree / "archive" / root).rename(source)
        return source

    def _fetch_git(self, progress: Progress) -> Path:
        """A checkout of exactly the pinned ref; fetched once, kept in the cache."""
        repository, url, ref = self.cache / "sources" / "llama.cpp.git", self.wanted["git_url"], self.wanted["git_ref"]
        progress.begin("fetching", 0, "steps")
        if not repository.exists():
            self._git("init", "--quiet", "--bare", str(repository))
        commit = re.fullmatch(r"[0-9a-f]{40}", ref)
        remote, local = (ref, f"refs/r1prov/{ref}") if commit else (f"refs/tags/{ref}", f"refs/tags/{ref}")
        git = ("--git-dir", str(repository))
        if not _output(["git", *git, "rev-parse", "--verify", "--quiet", local]):
            self._git(*git, "fetch", "--quiet", "--depth", "1", url, f"{remote}:{local}")
        source = self.tree / "source"
        source.mkdir()
        self._git(*git, "--work-tree", str(source), "checkout", "--quiet", "--force", local, "--", ".")
        return source

    def _git(self, *arguments: str) -> None:
        done = subprocess.run(["git", *arguments], capture_output=True, text=True, check=False)
        if done.returncode:
            raise BuildError(
                f"{without_credentials(done.stderr.strip())}. Check llama_cpp_git_url, and that llama_cpp_git_ref "
                f"({self.wanted['git_ref']}) is a tag or a full commit; branches move and are not taken."
            )

    def _jobs(self) -> int:
        if self.wanted["jobs"]:
            return self.wanted["jobs"]
        memory_bytes = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        return max(1, min(len(os.sched_getaffinity(0)), memory_bytes // _JOB_MEMORY_BYTES))

    def _run(self, command: list[Any], progress: Progress) -> None:
        """Runs one tool of the build; its talk goes to the log, its counter to the progress."""
        environment = {
            # ccache takes an object of another locale for another object, whatever LC_ALL says.
            **{name: value for name, value in os.environ.items() if name != "LANG" and not name.startswith("LC_")},
            "LC_ALL": "C",
            "NINJA_STATUS": "[%f/%t] ",
            "CCACHE_DIR": str(self.cache / "ccache"),
            "CCACHE_BASEDIR": str(self.tree),
            # A toolkit installed again has new time stamps but the same compiler.
            "CCACHE_COMPILERCHECK": "content",
        }
        # Whatever serves on this host goes first.
        command = ["nice", "-n", "10", *map(str, command)]
        lines = []
        with (
            self.log.open("a", encoding="utf-8") as log,
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
            raise BuildError("\n".join(["the build failed:", *why, remedy(why, str(self.log))]))

    def _install(self, targets: list[str], seconds: float) -> None:
        """The programs, proven to run, in their final place."""
        with whole_folder(self.path) as folder:
            (folder / "bin").mkdir()
            for target in targets:
                shutil.copy2(self.tree / "build" / "bin" / target, folder / "bin" / target)
            server = [str(folder / "bin" / "llama-server"), "--version"]
            done = subprocess.run(server, capture_output=True, text=True, check=False, timeout=120)
            if done.returncode or self.wanted["version"] not in done.stdout + done.stderr:
                said = (done.stderr or done.stdout).strip()
                raise BuildError(f"the new llama-server does not run (status {done.returncode}): {said}")
            record = {
                "id": self.id,
                **self.decides,
                "cmake": _output(["cmake", "--version"]).partition("\n")[0],
                "built_unix_s": round(time.time()),
                "build_s": round(seconds, 1),
            }
            (folder / "release.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def _output(command: list[str]) -> str:
    """What a program prints; empty where it is not there or fails."""
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""


def _libcuda() -> str | None:
    """The driver's library, where this host has a driver."""
    match = re.search(r"libcuda\.so\.1 \(libc6,x86-64.*\) => (\S+)", _output(["/sbin/ldconfig", "-p"]))
    return match[1] if match else None


def _rpc_target(source: Path) -> str:
    """The RPC server's name, which changed between versions."""
    text = (source / "tools/rpc/CMakeLists.txt").read_text(encoding="utf-8")
    return re.search(r"set\(TARGET ([\w-]+)\)", text)[1]
