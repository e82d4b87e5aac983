"""Tests of the choice of the CUDA toolkit for a driver and its cards."""

from __future__ import annotations

from pathlib import Path

import pytest
from ansible_collections.r1.prov.plugins.module_utils.build_wheels import link_libraries
from ansible_collections.r1.prov.plugins.module_utils.uv import pinned
from ansible_collections.r1.prov.plugins.modules.cuda_toolkit_choice import (
    Candidate,
    choose,
    driver_major,
    unfit,
    version_of,
)

PYPI = Candidate("pypi", "/opt/r1prov/cuda/wheels", (13, 0))
NVIDIA = Candidate("nvidia", "/usr/local/cuda-12.4", (12, 4))
DEBIAN_12 = Candidate("distribution", "/usr", (11, 8))
UBUNTU_22 = Candidate("distribution", "/usr", (11, 5))
SYSTEM = Candidate("system", "/usr/local/cuda-12.4", (12, 4), architectures=("80", "89", "90"))


@pytest.mark.parametrize(
    ("candidate", "architecture", "driver", "says"),
    [
        (PYPI, "89", 580, ""),
        (PYPI, "89", None, ""),
        (PYPI, "89", 550, "needs a driver of 580 or newer, this host has 550"),
        (PYPI, "70", 580, "does not know sm_70"),
        (NVIDIA, "90", 550, ""),
        (NVIDIA, "120", 580, "does not know sm_120"),
        (DEBIAN_12, "89", 535, ""),
        (UBUNTU_22, "89", 535, "CUDA 11.5 does not know sm_89"),
        (SYSTEM, "90", 550, ""),
        (SYSTEM, "120", 550, "CUDA 12.4 does not know sm_120"),
        (Candidate("nvidia", "/x", None, "no repository"), "89", None, "no repository"),
    ],
)
def test_what_fits(candidate: Candidate, architecture: str, driver: int | None, says: str) -> None:
    found = unfit(candidate, [architecture], driver)
    assert says in found
    assert bool(says) == bool(found)


def test_the_first_that_fits_is_taken_and_the_others_say_why_not() -> None:
    choice, considered = choose([PYPI, NVIDIA, DEBIAN_12], "auto", ["89"], 550)
    assert choice is NVIDIA
    assert considered == ["pypi (/opt/r1prov/cuda/wheels): CUDA 13.0 needs a driver of 580 or newer, this host has 550"]


def test_a_named_source_is_the_only_one() -> None:
    choice, considered = choose([PYPI, NVIDIA, UBUNTU_22], "distribution", ["89"], 580)
    assert choice is None
    assert considered == ["distribution (/usr): CUDA 11.5 does not know sm_89"]


def test_versions_as_programs_print_them() -> None:
    assert driver_major("550.54.15") == 550
    assert version_of("12.4.131~12.4.1-4") == (12, 4)
    assert version_of("(none)") is None


def test_wheels_get_the_links_that_cmake_looks_for(tmp_path: Path) -> None:
    (tmp_path / "lib").mkdir()
    for library in ("libcublas.so.13", "libnvrtc-builtins.alt.so.13.0"):
        (tmp_path / "lib" / library).write_text("x")
    link_libraries(tmp_path)
    assert (tmp_path / "lib64" / "libcublas.so").readlink().name == "libcublas.so.13"
    assert (tmp_path / "lib64" / "libnvrtc-builtins.alt.so").exists()


def test_the_requirements_pin_seven_wheels() -> None:
    files = Path(__file__).parents[2] / "roles/cuda_toolkit/files"
    pins = pinned((files / "requirements.txt").read_text(encoding="utf-8"))
    assert len(pins) == 7
    assert pins["nvidia_cuda_nvcc"] == "13.0.88"
