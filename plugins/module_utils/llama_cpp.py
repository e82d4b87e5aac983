"""What decides a build of llama.cpp, and what the output of its compilers means. Nothing is read or run here."""

from __future__ import annotations

import hashlib
import json
import re
from typing import Any

TARGETS = (
    "llama-server",
    "llama-cli",
    "llama-completion",
    "llama-bench",
    "llama-batched-bench",
    "llama-quantize",
    "llama-gguf-split",
    "llama-fit-params",
    "llama-perplexity",
)

# The build leaves out the network, the tests and every program that nobody here runs. It does not depend on what else the host has,
# such as OpenSSL, NCCL or npm.
_COMMON_FLAGS = (
    "-DCMAKE_BUILD_TYPE=Release",
    "-DBUILD_SHARED_LIBS=OFF",
    "-DCMAKE_C_COMPILER_LAUNCHER=ccache",
    "-DCMAKE_CXX_COMPILER_LAUNCHER=ccache",
    "-DGGML_CCACHE=OFF",  # its own way of calling ccache would call it twice
    "-DGGML_NATIVE=ON",  # compiled where it runs; the release's ID holds the CPU
    "-DLLAMA_BUILD_TESTS=OFF",
    "-DLLAMA_BUILD_EXAMPLES=OFF",
    "-DLLAMA_BUILD_APP=OFF",
    "-DLLAMA_BUILD_UI=OFF",
    "-DLLAMA_USE_PREBUILT_UI=OFF",  # the build would download it
    "-DLLAMA_OPENSSL=OFF",  # the engine serves loopback and fetches nothing
)

_NO_AMX = "-mno-amx-tile -mno-amx-int8 -mno-amx-bf16"  # GCC lets this win over -march=native in any order

# The instruction sets that -march=native uses. Other flags of /proc/cpuinfo come and go with updates of kernel and microcode.
_INSTRUCTIONS = re.compile(
    r"^(sse|ssse|avx|amx|fma|f16c|bmi|abm|adx|aes|vaes|pclmul|vpclmul|gfni|sha|popcnt|movbe|rdrnd|rdseed|movdir|xsave|lahf|cx16)"
)
_STEP = re.compile(r"^\[(\d+)/(\d+)\] ")
_ERROR = re.compile(
    r"\berror:|CMake Error|undefined reference|No space left on device|Killed signal|^ninja: error|^FATAL"
)


def contradiction(parameters: dict[str, object]) -> str | None:
    """What is missing or wrong among the version and the options of a build, in one sentence; None where they make sense."""
    source, version = parameters["source"], str(parameters["version"])
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._+-]*", version):
        return f"version {version!r} cannot name a folder: use letters, digits and . _ + - only"
    if source != "git" and not re.fullmatch(r"[0-9a-f]{64}", str(parameters["sha256"])):
        return f"source {source} needs the archive's sha256 (64 hex digits), not {parameters['sha256']!r}"
    if source == "archive" and not parameters["archive"]:
        return "source archive needs archive: a URL or a file"
    if source == "git" and (wrong := _ref_fault(parameters)):
        return wrong
    if parameters["backend"] == "cuda" and not parameters["cuda_architectures"]:
        return "backend cuda needs cuda_architectures, e.g. ['89'] for the RTX 4090"
    return None


def _ref_fault(parameters: dict[str, object]) -> str:
    """What is missing or wrong among the options of a repository; empty where they make sense."""
    if not (parameters["git_url"] and parameters["git_ref"]):
        return "source git needs git_url and git_ref"
    if not re.fullmatch(r"[0-9a-f]{40}", str(parameters["git_commit"] or parameters["git_ref"])):
        return f"git_ref {parameters['git_ref']} is a tag, which can move: name in git_commit the full commit that it must have"
    return ""


def cmake_flags(
    *, backend: str, architectures: list[str], cuda_root: str, libcuda: str | None, amx: bool, rpc: bool, label: str
) -> list[str]:
    """The options that CMake is called with.

    Args:
        backend: `cpu` or `cuda`.
        architectures: compute capabilities without the dot, e.g. `89`.
        cuda_root: the toolkit's folder, links resolved: the programs keep finding their libraries there.
        libcuda: the driver's library; None on a host without a driver.
        amx: whether the CPU has AMX.
        rpc: whether the RPC backend is wanted.
        label: what the server calls its build.
    """
    flags = [
        *_COMMON_FLAGS,
        f"-DGGML_RPC={'ON' if rpc else 'OFF'}",
        "-DLLAMA_BUILD_NUMBER=0",
        f"-DLLAMA_BUILD_COMMIT={label}",
    ]
    if amx:
        # With its AMX kernels this llama.cpp aborts on deepseek2 files (GGML_ASSERT(*cur_backend_id != -1)). --no-repack would help too,
        # but it would take the other repacked kernels away. R1 loses nothing, because the types of its experts have no AMX kernel.
        flags += [f"-DCMAKE_{language}_FLAGS={_NO_AMX}" for language in ("C", "CXX")]
    if backend != "cuda":
        return [*flags, "-DGGML_CUDA=OFF"]
    return [
        *flags,
        "-DGGML_CUDA=ON",
        f"-DCMAKE_CUDA_ARCHITECTURES={';'.join(f'{a}-real' for a in architectures)}",
        f"-DCMAKE_CUDA_COMPILER={cuda_root}/bin/nvcc",
        f"-DCUDAToolkit_ROOT={cuda_root}",
        f"-DCMAKE_BUILD_RPATH={cuda_root}/lib64",
        "-DCMAKE_CUDA_COMPILER_LAUNCHER=ccache",
        "-DGGML_CUDA_NCCL=OFF",  # it splits tensors over cards, and here cards get whole layers
        # With the driver's library the memory pool grows in place. Without a driver there is no library to link to.
        *([f"-DCUDA_cuda_driver_LIBRARY={libcuda}"] if libcuda else ["-DGGML_CUDA_NO_VMM=ON"]),
    ]


def release_id(version: str, backend: str, decides: dict[str, object]) -> str:
    """The name of a release, VERSION-BACKEND-DIGEST. Builds that differ in anything that decides them differ in their names.

    Args:
        version: the label the operator gave.
        backend: `cpu` or `cuda`.
        decides: everything that decides the build, as JSON values.
    """
    digest = hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()[:12]
    return f"{version}-{backend}-{digest}"


def cpu_identity(cpuinfo: str) -> dict[str, Any]:
    """The model and the instruction sets of the first processor of /proc/cpuinfo."""
    fields = dict(re.findall(r"^([^\t:]+)\t*: (.*)$", cpuinfo.partition("\n\n")[0], re.MULTILINE))
    flags = fields.get("flags", "").split()
    return {
        "model": fields.get("model name", "unknown"),
        "instructions": sorted(flag for flag in flags if _INSTRUCTIONS.match(flag)),
    }


def ninja_step(line: str) -> tuple[int, int] | None:
    """The steps done and all steps, from a line of ninja such as `[12/359] Building ...`; None for any other line."""
    match = _STEP.match(line)
    return (int(match[1]), int(match[2])) if match else None


def first_error(log: list[str], limit: int = 6) -> list[str]:
    """The first lines of a build's log that say why it failed. Where no line says so, the last lines."""
    for number, line in enumerate(log):
        if _ERROR.search(line):
            return log[number : number + limit]
    return log[-limit:]


def remedy(lines: list[str], log: str) -> str:
    """What to do about a failed build."""
    text = "\n".join(lines)
    if "No space left on device" in text:
        return "Free some space (the build needs about 3 GB below /var/cache/r1prov) and run again."
    if "Killed signal" in text:
        return "The host ran out of memory: set llama_cpp_jobs to fewer jobs and run again."
    return f"The whole log is on the host in {log}. Objects compiled so far are kept: running again goes on from there."
