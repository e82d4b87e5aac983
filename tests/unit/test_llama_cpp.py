"""Tests of a build of llama.cpp: its options (golden), its release's name, and the messages of ninja and the compiler."""

from __future__ import annotations

from pathlib import Path

import pytest
from ansible_collections.r1.prov.plugins.module_utils import llama_cpp

GOLDEN = Path(__file__).parents[1] / "golden"
CPUINFO = """processor\t: 0
model name\t: Intel(R) Xeon(R) Platinum 8352V CPU @ 2.10GHz
flags\t\t: fpu sse4_2 avx512f ibpb avx2 fma

processor\t: 1
model name\t: another
"""


def flags(
    backend: str = "cpu",
    architectures: tuple[str, ...] = (),
    libcuda: str | None = None,
    *,
    amx: bool = False,
    rpc: bool = False,
):
    return llama_cpp.cmake_flags(
        backend=backend,
        architectures=list(architectures),
        cuda_root="/opt/r1prov/cuda/releases/13.0-0123456789ab",
        libcuda=libcuda,
        amx=amx,
        rpc=rpc,
        label="0.3.36",
    )


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("cpu-rpc", flags(rpc=True)),
        ("cpu-amx", flags(amx=True)),
        ("cuda-sm_89", flags("cuda", ("89",), "/lib/x86_64-linux-gnu/libcuda.so.1")),
        ("cuda-sm_90", flags("cuda", ("90",), "/lib/x86_64-linux-gnu/libcuda.so.1")),
        ("cuda-sm_89-sm_90-no-driver", flags("cuda", ("89", "90"))),
    ],
)
def test_options_are_golden(name: str, options: list[str]) -> None:
    assert options == (GOLDEN / "llama_cpp" / f"{name}.txt").read_text(encoding="utf-8").splitlines()


def test_release_id_is_the_same_for_the_same_build_and_another_for_another() -> None:
    decides: dict[str, object] = {"source": "a", "flags": ["x"]}
    first = llama_cpp.release_id("0.3.36", "cuda", decides)
    assert first == llama_cpp.release_id("0.3.36", "cuda", dict(reversed(decides.items())))
    assert first.startswith("0.3.36-cuda-")
    assert first != llama_cpp.release_id("0.3.36", "cuda", {**decides, "flags": ["y"]})


def test_cpu_identity_is_the_first_processor_and_its_instructions() -> None:
    assert llama_cpp.cpu_identity(CPUINFO) == {
        "model": "Intel(R) Xeon(R) Platinum 8352V CPU @ 2.10GHz",
        "instructions": ["avx2", "avx512f", "fma", "sse4_2"],
    }


def test_ninja_counts() -> None:
    assert llama_cpp.ninja_step("[12/359] Building CXX object x.o") == (12, 359)
    assert llama_cpp.ninja_step("x.cpp:1:2: warning: [1/2] no step") is None


def test_first_error_skips_warnings_and_keeps_what_follows() -> None:
    log = [
        "[1/2] Building",
        "a.cpp:1: warning: w",
        "a.cpp:7:1: error: expected ';'",
        "    7 | int x",
        "      | ^",
        "ninja: stopped",
    ]
    assert llama_cpp.first_error(log) == log[2:]
    assert llama_cpp.first_error(["nothing", "said"]) == ["nothing", "said"]


@pytest.mark.parametrize(
    ("line", "advice"),
    [
        ("c++: fatal error: Killed signal terminated program cc1plus", "llama_cpp_jobs"),
        ("fatal error: error writing to x.s: No space left on device", "Free some space"),
        ("a.cpp:7:1: error: expected ';'", "/build.log"),
    ],
)
def test_remedy_fits_the_failure(line: str, advice: str) -> None:
    assert advice in llama_cpp.remedy([line], "/build.log")


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"version": "../x"}, "cannot name a folder"),
        ({"sha256": "abc"}, "64 hex digits"),
        ({"source": "archive", "archive": ""}, "a URL or a file"),
        ({"source": "git"}, "git_url and git_ref"),
        ({"source": "git", "git_url": "https://x", "git_ref": "b1"}, "is a tag, which can move"),
        ({"source": "git", "git_url": "https://x", "git_ref": "b1", "git_commit": "1" * 40}, None),
        ({"source": "git", "git_url": "https://x", "git_ref": "1" * 40}, None),
        ({"backend": "cuda"}, "cuda_architectures"),
        ({}, None),
    ],
)
def test_contradictions(wrong: dict[str, object], says: str | None) -> None:
    good = {
        "source": "pypi", "version": "1", "sha256": "0" * 64, "archive": "", "git_url": "", "git_ref": "",
        "git_commit": "", "backend": "cpu", "cuda_architectures": [],
    }  # fmt: skip
    found = llama_cpp.contradiction({**good, **wrong})
    assert found is None if says is None else says in str(found)
