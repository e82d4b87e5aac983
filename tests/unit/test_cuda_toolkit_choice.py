"""Which CUDA toolkit fits which driver and cards."""

from __future__ import annotations

import zipfile
from contextlib import nullcontext
from pathlib import Path

import pytest
from ansible_collections.r1.prov.plugins.module_utils.cuda import Candidate, choose, unfit
from ansible_collections.r1.prov.plugins.module_utils.download import sha256_of
from ansible_collections.r1.prov.plugins.module_utils.progress import Progress
from ansible_collections.r1.prov.plugins.modules.cuda_toolkit_choice import driver_major, version_of
from ansible_collections.r1.prov.plugins.modules.cuda_wheels import WheelError, install, link_libraries, pinned, unpack

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
    assert ("nvidia-cuda-nvcc", "13.0.88") in [pin[:2] for pin in pins]
    assert {len(pin[2]) for pin in pins} == {3}


def test_a_wheel_is_unpacked_with_its_programs_executable(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.whl", "w") as wheel:
        program = zipfile.ZipInfo("nvidia/cu13/bin/nvcc")
        program.external_attr = 0o100755 << 16
        wheel.writestr(program, "x")
        wheel.writestr("nvidia/cu13/include/cuda.h", "x")
        wheel.writestr("nvidia_cuda_nvcc-1.dist-info/RECORD", "x")
    unpack(tmp_path / "a.whl", tmp_path / "toolkit")
    modes = {str(f.relative_to(tmp_path / "toolkit")): f.stat().st_mode & 0o777 for f in tmp_path.glob("toolkit/*/*")}
    assert modes == {"bin/nvcc": 0o755, "include/cuda.h": 0o644}


@pytest.mark.parametrize("status", [0, 1])
def test_a_toolkit_whose_compiler_does_not_run_is_not_there(tmp_path: Path, status: int) -> None:
    wheel = tmp_path / "nvidia_cuda_nvcc-1-py3-none-manylinux_x86_64.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        program = zipfile.ZipInfo("nvidia/cu13/bin/nvcc")
        program.external_attr = 0o100755 << 16
        archive.writestr(program, f"#!/bin/sh\nexit {status}\n")
    wanted = f"nvidia-cuda-nvcc==1 --hash=sha256:{sha256_of(wheel)}\n"
    root = tmp_path / "cuda" / "wheels"
    with pytest.raises(WheelError, match="does not run") if status else nullcontext():
        install(wanted, root, tmp_path, Progress("cuda_toolkit", tmp_path))
    assert list(root.parent.iterdir()) == ([] if status else [root])
