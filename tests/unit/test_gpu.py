"""Tests of `make test-gpu` without a card. A plain Python runs its own code, on a tiny source tree and a script for nvidia-smi."""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import runpy
import shutil
import signal
import subprocess
import sys
import tarfile
import time
import zipfile
from pathlib import Path

import pytest

from tests.gpu import __main__ as gpu
from tests.gpu import build, bundle, inputs, restrictions

ROOT = Path(__file__).parents[2]
H200 = "0, NVIDIA H200, 9.0, 580.65.06, 143771, 0, 531, Disabled"
A_CARD_OF_OLD = "1, Tesla P40, 6.1, 535.183.01, 24576, 0, [N/A], [N/A]"


def sdist(folder: Path, cmake: str) -> tuple[Path, str]:
    """An sdist as the index has it, around an engine of one CMakeLists.txt; and its sha256."""
    path = folder / "sdist.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        for name, text in {
            "pkg/vendor/llama.cpp/CMakeLists.txt": cmake,
            "pkg/vendor/llama.cpp/docs/long.md": "x",
            "pkg/vendor/llama.cpp/models/vocab.gguf": "x",
            "pkg/.git/modules/vendor/llama.cpp/objects/pack/p": "x",
            "pkg/setup.py": "x",
        }.items():
            member = tarfile.TarInfo(name)
            member.size = len(text)
            archive.addfile(member, io.BytesIO(text.encode()))
    return path, hashlib.sha256(path.read_bytes()).hexdigest()


def engine(server: str) -> str:
    """A source tree with the targets of llama.cpp, which are scripts: CMake writes them, and nothing is compiled."""
    return (
        "cmake_minimum_required(VERSION 3.16)\nproject(tiny NONE)\n"
        f"file(WRITE ${{CMAKE_BINARY_DIR}}/bin/llama-server [[#!/bin/sh\n{server}\n]])\n"
        "execute_process(COMMAND chmod +x ${CMAKE_BINARY_DIR}/bin/llama-server)\n"
        + "".join(f"add_custom_target({name})\n" for name in build._recipe().TARGETS)
    )


def command(folder: Path, *pieces: str) -> list[str]:
    """The command of a Python that sees only its own library."""
    script = "import sys; sys.path.insert(0, sys.argv.pop(1)); import runpy; runpy.run_module('tests.gpu', run_name='__main__')"
    places = ["--bundle", str(folder / "bundle"), "--work", str(folder / "work")]
    return [sys.executable, "-I", "-S", "-c", script, str(ROOT), *pieces, *places]


def environment(folder: Path) -> dict[str, str]:
    return {"PATH": f"{folder / 'programs'}:/usr/bin:/bin", "OUT": str(folder / "out")}


def run(
    folder: Path, *pieces: str, smi: str | None = None, code: int = 0, cmake: str = ""
) -> tuple[int, dict[str, dict]]:
    """Runs pieces with these cards. Returns the status and the results."""
    programs = folder / "programs"
    programs.mkdir(exist_ok=True)
    if smi is not None:
        (programs / "nvidia-smi").write_text(f"#!/bin/sh\ncat <<'END'\n{smi}\nEND\nexit {code}\n")
        (programs / "nvcc").write_text("#!/bin/sh\n")
        for program in programs.iterdir():
            program.chmod(0o755)
    if cmake:
        bundle.pack(*sdist(folder, cmake), folder / "bundle")
    done = subprocess.run(
        command(folder, *pieces), env=environment(folder), capture_output=True, text=True, check=False
    )
    assert not done.stderr
    return done.returncode, {path.stem: json.loads(path.read_text()) for path in (folder / "out").glob("*.json")}


needs_cmake = pytest.mark.skipif(
    not all(map(shutil.which, ("cmake", "ninja", "c++"))), reason="no CMake, ninja or compiler"
)
VERSION = bundle.pinned()[0]
FETCH = f"  -> {inputs.FETCH}"


def test_the_facts_of_two_cards(tmp_path: Path):
    status, results = run(tmp_path, "cards", smi=f"{H200}\n{A_CARD_OF_OLD}")
    assert status == 0
    assert [
        (card["name"], card["compute_capability"], card["memory_bytes"], card["reserved_bytes"])
        for card in results["cards"]["cards"]
    ] == [("NVIDIA H200", "9.0", 143771 << 20, 531 << 20), ("Tesla P40", "6.1", 24576 << 20, None)]


def test_a_driver_that_fails_is_a_failure_and_not_a_machine_without_cards(tmp_path: Path):
    status, results = run(tmp_path, "cards", smi="NVIDIA-SMI has failed", code=9)
    assert status == 1
    assert "NVIDIA-SMI has failed" in results["cards"]["failed"]


def test_an_unknown_answer_is_a_failure(tmp_path: Path):
    status, results = run(tmp_path, "cards", smi="No devices were found")
    assert status == 1
    assert "No devices were found" in results["cards"]["failed"]


@needs_cmake
@pytest.mark.parametrize(("smi", "cuda"), [(None, False), (H200, True)])
def test_a_build_for_the_card_at_hand(tmp_path: Path, smi: str | None, cuda: bool):
    server = f"echo version: {VERSION}; echo CUDA0: NVIDIA H200"
    status, results = run(tmp_path, "cards", "build", smi=smi, cmake=engine(server))
    assert status == 0, results
    assert ("-DCMAKE_CUDA_ARCHITECTURES=90-real" in results["build"]["flags"]) is cuda
    assert sorted(path.name for path in (tmp_path / "work").glob("source-*/*")) == ["CMakeLists.txt"]


@needs_cmake
@pytest.mark.parametrize(
    ("server", "says"),
    [
        ("echo version: 0.0.1; echo CUDA0: NVIDIA H200", f"does not say that it is {VERSION}"),
        (f"echo version: {VERSION}", "does not list CUDA0"),
        ("echo no driver; exit 3", "ended with 3: no driver"),
    ],
)
def test_an_engine_that_is_not_right_fails(tmp_path: Path, server: str, says: str):
    status, results = run(tmp_path, "build", smi=H200, cmake=engine(server))
    assert status == 1
    assert says in results["build"]["failed"]


@needs_cmake
def test_a_step_that_fails_says_its_last_words(tmp_path: Path):
    status, results = run(tmp_path, "build", "cards", cmake="message(FATAL_ERROR broken)")
    assert status == 1
    assert "broken" in results["build"]["failed"]
    assert "cards" not in results  # Nothing is begun after it.


def refused(folder: Path, *words: str) -> list[str]:
    """Runs pieces that cannot be run. Returns what is said, line by line."""
    done = subprocess.run(command(folder, *words), env=environment(folder), capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert not list((folder / "out").iterdir())
    first, *lines = done.stderr.splitlines()
    assert first.startswith("Nothing was begun")
    return lines


@needs_cmake
def test_a_bundle_that_was_changed_or_is_missing_is_refused_file_by_file(tmp_path: Path):
    source = tmp_path / "bundle" / bundle.SOURCE
    assert refused(tmp_path, "build") == [f"{source}: not there", f"{source}.sha256: not there", FETCH]
    bundle.pack(*sdist(tmp_path, engine("true")), tmp_path / "bundle")
    with source.open("ab") as archive:
        archive.write(b"x")
    assert refused(tmp_path, "build") == [f"{source}: not what was packed", FETCH]
    Path(f"{source}.sha256").unlink()
    assert refused(tmp_path, "build") == [f"{source}.sha256: not there", FETCH]


def test_all_that_is_missing_is_said_at_once_before_anything_is_done(tmp_path: Path):
    """Also of pieces whose turn would come an hour later."""
    (tmp_path / "programs").mkdir()
    (tmp_path / "programs" / "nvidia-smi").write_text(f"#!/bin/sh\necho '{H200}'\n")
    (tmp_path / "programs" / "nvidia-smi").chmod(0o755)
    named = tmp_path / "engine"
    named.mkdir()
    said = "\n".join(refused(tmp_path, "--programs", str(named)))
    for name in ("pydantic_core", "pyyaml", "annotated_types", "typing_extensions"):
        assert re.search(rf"^\S+/wheels/{name}-[\d.]+-\*\.whl for Python 3\.\d+: not there$", said, re.MULTILINE)
    assert f"{tmp_path / 'bundle' / restrictions.FILE}: not there\n" in said
    assert f"{tmp_path / 'bundle' / bundle.SOURCE}: not there\n" in said
    assert f"{named}: no llama-server, llama-bench, llama-batched-bench there that can be run\n" in said
    assert "nvcc: there are cards, and it is neither" in said
    assert said.count("  -> run `make gpu-bundle`") == 1
    assert "no engine is built yet" in "\n".join(refused(tmp_path, "unit", "build"))  # in this order


@pytest.mark.parametrize(
    ("text", "says"), [("{", "not whole, or no JSON"), ("", "not whole, or no JSON"), ("[]", "not what was written")]
)
def test_broken_restrictions_are_named(tmp_path: Path, text: str, says: str):
    path = tmp_path / "bundle" / restrictions.FILE
    path.parent.mkdir()
    path.write_text(text)
    assert any(line.startswith(f"{path}: {says}") for line in refused(tmp_path, "unit"))


def test_a_driver_that_fails_keeps_pieces_from_beginning(tmp_path: Path):
    (tmp_path / "programs").mkdir()
    (tmp_path / "programs" / "nvidia-smi").write_text("#!/bin/sh\necho NVIDIA-SMI has failed; exit 9\n")
    (tmp_path / "programs" / "nvidia-smi").chmod(0o755)
    assert "nvidia-smi ended with 9: NVIDIA-SMI has failed" in refused(tmp_path, "cards", "build")


@needs_cmake
def test_another_bundle_is_built_where_an_older_one_was(tmp_path: Path):
    wrong, right = (engine(f"echo version: {version}") for version in ("0.0.1", VERSION))
    assert [run(tmp_path, "build", cmake=tree)[0] for tree in (wrong, right)] == [1, 0]


def slow_engine() -> str:
    """A tree whose build does one step, and another that waits for a file."""
    step = "add_custom_command(OUTPUT once COMMAND echo once >> ${CMAKE_BINARY_DIR}/steps COMMAND touch once)\n"
    slow = "add_custom_command(OUTPUT slow DEPENDS once COMMAND test -e ${CMAKE_BINARY_DIR}/go || sleep 60 COMMAND touch slow)\n"
    return engine(f"echo version: {VERSION}").replace(
        "add_custom_target(llama-server)", f"{step}{slow}add_custom_target(llama-server DEPENDS slow)"
    )


@needs_cmake
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_no_two_builds_write_into_one_folder(tmp_path: Path, number: signal.Signals):
    """A build that is stopped ends its compilers. Where it was killed and could not, the next one refuses while they live."""
    (tmp_path / "programs").mkdir()
    bundle.pack(*sdist(tmp_path, slow_engine()), tmp_path / "bundle")
    of_an_earlier_build = tmp_path / "out" / "build.json"
    of_an_earlier_build.parent.mkdir()
    of_an_earlier_build.write_text('{"failed": ""}')
    with subprocess.Popen(
        command(tmp_path, "build"),
        env=environment(tmp_path),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    ) as building:
        deadline = time.monotonic() + 60
        while not list((tmp_path / "work").glob("build-*/steps")):
            assert time.monotonic() < deadline
            time.sleep(0.1)
        building.send_signal(number)
        assert building.stderr
        if number != signal.SIGKILL:
            assert building.stderr.read() == "Stopped. The same command goes on where this was.\n"
    assert not of_an_earlier_build.exists()
    again = subprocess.run(
        command(tmp_path, "cards"), env=environment(tmp_path), capture_output=True, text=True, check=False
    )
    killed = number == signal.SIGKILL
    assert (again.returncode, "what is left of one, works in" in again.stderr) == (int(killed), killed)
    left = subprocess.run(
        ["pgrep", "--full", f"ninja -C {tmp_path}"], capture_output=True, text=True, check=False
    ).stdout
    assert bool(left) == killed
    for pid in left.split():
        os.killpg(int(pid), signal.SIGTERM)


@needs_cmake
def test_a_build_goes_on_after_its_time_was_up(tmp_path: Path):
    status, results = run(tmp_path, "build", "--limit-s", "4", cmake=slow_engine())
    assert (status, "ran out of time" in results["build"]["failed"]) == (1, True)
    built = next((tmp_path / "work").glob("build-*"))
    (built / "go").touch()
    assert run(tmp_path, "build")[0] == 0
    assert (built / "steps").read_text() == "once\n"


def test_the_sdist_is_fetched_where_its_build_backend_is_not_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """pip itself does it, from a folder in place of an index."""
    links = tmp_path / "links"
    links.mkdir()
    described = "Metadata-Version: 2.1\nName: {}\nVersion: 1.0\n"
    backend = (
        "import os\n"
        "def prepare_metadata_for_build_wheel(folder, settings=None):\n"
        "    os.mkdir(folder + '/llama_cpp_python-1.0.dist-info')\n"
        f"    open(folder + '/llama_cpp_python-1.0.dist-info/METADATA', 'w').write({described.format('llama-cpp-python')!r})\n"
        "    return 'llama_cpp_python-1.0.dist-info'\n"
    )
    with zipfile.ZipFile(links / "nowhere_installed-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("nowhere_installed.py", backend)
        wheel.writestr("nowhere_installed-1.0.dist-info/METADATA", described.format("nowhere-installed"))
        wheel.writestr("nowhere_installed-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        wheel.writestr("nowhere_installed-1.0.dist-info/RECORD", "")
    files = {
        "PKG-INFO": described.format("llama-cpp-python"),
        "pyproject.toml": '[build-system]\nrequires = ["nowhere-installed"]\nbuild-backend = "nowhere_installed"\n',
    }
    with tarfile.open(links / "llama_cpp_python-1.0.tar.gz", "w:gz") as packed:
        for name, text in files.items():
            member = tarfile.TarInfo(f"llama_cpp_python-1.0/{name}")
            member.size = len(text)
            packed.addfile(member, io.BytesIO(text.encode()))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(links))
    assert bundle.fetch("1.0", tmp_path).read_bytes() == (links / "llama_cpp_python-1.0.tar.gz").read_bytes()


def test_an_sdist_that_is_not_the_pinned_one_is_refused(tmp_path: Path):
    path, _ = sdist(tmp_path, "")
    with pytest.raises(RuntimeError, match="pins"):
        bundle.pack(path, "0" * 64, tmp_path)


@needs_cmake
def test_the_page_has_a_row_per_card_and_driver(tmp_path: Path):
    rows = runpy.run_path(str(ROOT / "docs" / "generate.py"))["_cards"]
    assert "nobody has run" in rows(tmp_path / "out")
    run(tmp_path, "cards", "build", smi=f"{H200}\n{A_CARD_OF_OLD}", cmake="message(FATAL_ERROR broken)")
    kept = (tmp_path / "out").rename(tmp_path / "kept")
    (tmp_path / "out" / "two").parent.mkdir()
    kept.rename(tmp_path / "out" / "two")
    page = rows(tmp_path / "out")
    assert "| NVIDIA H200 | 9.0 | 580.65.06 | 143,771 MiB | cmake ended with 1" in page
    assert "| Tesla P40 | 6.1 | 535.183.01 | 24,576 MiB | cmake ended with 1" in page


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--limit-s", "-5"], "--limit-s: -5 is no number above 0"),
        (["--limit-s", "nan"], "--limit-s: nan is no number above 0"),
        (["--ram-gib", "much"], "--ram-gib: much is no number above 0"),
        (["--results", "/proc/results"], "/proc/results must be a folder that can be written to"),
        (["--results", "/etc/passwd"], "/etc/passwd must be a folder that can be written to"),
        (["--work", "/dev/null"], "/dev/null must be a folder that can be written to"),
        (["speed"], "there is no piece speed"),
    ],
)
def test_what_cannot_be_run_is_refused_before_any_work(
    words: list[str], says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        gpu.main(["--results", str(tmp_path / "results"), "--work", str(tmp_path / "work"), *words])
    assert end.value.code == 2
    assert says in capsys.readouterr().err
    assert not list(tmp_path.glob("results/*"))
