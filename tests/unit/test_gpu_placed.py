"""Tests of the pieces of `make test-gpu` that measure, without a card: the same code, a made-up card, and an engine that is a script.

The pieces run as on the day: a plain Python, the bundle's wheels, no network, nothing on the path.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import runpy
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from r1prov.common.locks import locked
from r1prov.common.paths import cache_dir
from r1prov.models import gguf, layout
from tests.gpu import confined, models, packages, restrictions

ROOT = Path(__file__).parents[2]
MIB = 1 << 20
CUDA_MIB = 480
"""What CUDA takes of the made-up card by itself."""

SMI = """#!{python} -IS
import pathlib, sys
state, words = pathlib.Path({state!r}), " ".join(sys.argv)
taken = sum(int(each.read_text()) for each in state.glob("*.taken"))
if "compute-apps" in words:
    for each in state.glob("*.taken") if {tells} else ():
        print(f"{{each.stem}}, GPU-1, {{each.read_text()}}")
elif "query-gpu=uuid" in words:
    print("GPU-1")
else:
    print(f"0, NVIDIA H200, 9.0, 580.65.06, {total}, {{4 + taken}}, 531, Disabled")
"""
SERVER = """#!{python} -IS
import hashlib, json, os, pathlib, signal, sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
state, words = pathlib.Path({state!r}), sys.argv[1:]
if "--version" in words:
    print("version: made up")
    sys.exit()
model = words[words.index("--model") + 1]
known = [word for word in words if word not in (model, words[words.index("--port") + 1])]
name = hashlib.sha256(json.dumps([pathlib.Path(model).name, known]).encode()).hexdigest()[:12]
(state / f"{{name}}.asked").write_text(json.dumps(words))
said = state / f"{{name}}.log"
lines = json.loads(said.read_text()) if said.exists() else {{}}
print("\\n".join(lines.get("log", [])), flush=True)
mine = state / f"{{os.getpid()}}.taken"
mine.write_text(str(lines.get("taken", 0)))
signal.signal(signal.SIGTERM, lambda *_: (mine.unlink(), os._exit(0)))

class Handler(BaseHTTPRequestHandler):
    def log_message(self, *words): pass
    def do_GET(self): self.say({{"status": "ok"}})
    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path == "/tokenize":
            return self.say({{"tokens": list(range(50))}})
        self.say({{"timings": {{"prompt_n": len(body["prompt"]), "prompt_per_second": 2000.0,
                  "predicted_n": body["n_predict"], "predicted_per_second": 1000.0}}}})
    def say(self, content):
        data = json.dumps(content).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

ThreadingHTTPServer.request_queue_size = 64
ThreadingHTTPServer(("127.0.0.1", int(words[words.index("--port") + 1])), Handler).serve_forever()
"""
BENCH = """#!{python} -IS
import json, mmap, sys
if {writes_code}:
    mmap.mmap(-1, 4096, prot=7)
print(json.dumps([{{"n_gen": n, "avg_ts": 10.0, "samples_ts": [10.0, 10.0]}} for n in (0, 8)]))
"""
BATCHED = """#!{python} -IS
import json, sys
value = lambda name: sys.argv[sys.argv.index(name) + 1]
for length in map(int, value("-npp").split(",")):
    print(json.dumps({{"pp": length, "tg": int(value("-ntg")), "pl": int(value("-npl")), "t_pp": length / 10, "t_tg": 1.0}}))
"""


@pytest.fixture(scope="session")
def bundle() -> Path:
    """What `make gpu-bundle` makes, but for the engine's source, and for this Python only. It is kept."""
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    digest = hashlib.sha256(packages.LOCK.read_bytes()).hexdigest()[:12]
    folder = cache_dir() / f"gpu-bundle-{digest}-{version}"
    with locked(cache_dir() / "gpu-bundle.lock"):
        if not folder.exists():
            for stale in cache_dir().glob(f"gpu-bundle-*-{version}"):
                shutil.rmtree(stale)
            part = cache_dir() / "gpu-bundle.part"
            shutil.rmtree(part, ignore_errors=True)
            packages.fetch(part, [version])
            part.rename(folder)
    return folder


class Machine:
    """A machine with a made-up card and an engine that is a script."""

    def __init__(self, folder: Path, bundle: Path) -> None:
        self.folder, self.state, self.programs = folder, folder / "state", folder / "programs"
        self.bundle = folder / "bundle"
        for each in (self.state, self.programs, self.bundle):
            each.mkdir()
        (self.bundle / "wheels").symlink_to(bundle / "wheels")
        restrictions.write(self.bundle)
        # A path that leads to nothing else: no systemd-run, no compiler.
        (self.programs / "python3").symlink_to(Path(sys.executable).resolve())
        self.card(24_564)
        self.program("llama-server", SERVER)
        self.program("llama-bench", BENCH, writes_code=False)
        self.program("llama-batched-bench", BATCHED)

    def card(self, total: int, *, tells: bool = True) -> None:
        """Has this card. `tells` says whether nvidia-smi tells what processes take."""
        self.program("nvidia-smi", SMI, total=total, tells=tells)

    def program(self, name: str, text: str, **values: object) -> None:
        path = self.programs / name
        path.write_text(
            text.format(python=Path(sys.executable).resolve(), state=str(self.state), **values), encoding="utf-8"
        )
        path.chmod(0o755)

    def run(self, *pieces: str, stderr: str = "") -> tuple[int, dict[str, dict]]:
        """Runs pieces. Returns the status and the results. `stderr` must stand there, or else nothing."""
        alone = ["unshare", "-n", "sh", "-c", 'ip link set lo up && exec "$@"', "sh"] if os.geteuid() == 0 else []
        python = [str(Path(sys.executable).resolve()), "-S", "-m", "tests.gpu"]
        places = ["--bundle", str(self.bundle), "--work", str(self.folder / "work"), "--programs", str(self.programs)]
        environment = [f"PATH={self.programs}", f"OUT={self.folder / 'out'}"]
        done = subprocess.run(
            [*alone, "/usr/bin/env", "-i", *environment, *python, *pieces, "--small", "--limit-s", "60", *places],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        )
        assert stderr in done.stderr if stderr else not done.stderr, done.stderr
        return done.returncode, {
            path.stem: json.loads(path.read_text()) for path in (self.folder / "out").glob("*.json")
        }

    def say_as_planned(self, modes: list[dict], factor: float = 1.0, cuda_mib: int = CUDA_MIB) -> None:
        """Lets the engine say from now on that its weights take `factor` times what is planned, and all else as planned."""
        for asked in self.state.glob("*.asked"):
            words = json.loads(asked.read_text())
            mode = next(each for each in modes if each["arguments"] and _holds(words, each["arguments"]))
            log, taken = [], 0
            for device in mode["planned"]:
                name = "CPU" if device["name"] == "host" else device["name"]
                for kind, label in (("weights", "model"), ("kv", "KV"), ("compute", "compute")):
                    n_bytes = device[f"{kind}_bytes"] * (factor if kind == "weights" else 1)
                    log.append(f"load: {name} {label} buffer size = {n_bytes / MIB:.2f} MiB")
                    taken += n_bytes if name != "CPU" else 0
            said = {"log": log, "taken": round(taken / MIB) + cuda_mib}
            asked.with_suffix(".log").write_text(json.dumps(said))


def _holds(words: list[str], part: list[str]) -> bool:
    return any(words[start : start + len(part)] == part for start in range(len(words)))


@pytest.fixture
def machine(tmp_path: Path, bundle: Path) -> Machine:
    return Machine(tmp_path, bundle)


def forget(machine: Machine) -> None:
    """Lets the next run measure anew."""
    for path in (machine.folder / "work").glob("*.modes.json"):
        path.unlink()


def page(machine: Machine) -> str:
    """docs/cards.md with the results of this machine."""
    kept = machine.folder / "kept" / "one"
    shutil.rmtree(kept, ignore_errors=True)
    shutil.copytree(machine.folder / "out", kept)
    return runpy.run_path(str(ROOT / "docs" / "generate.py"))["_cards"](kept.parent)


def test_memory_is_held_against_the_plan(machine: Machine):
    status, results = machine.run("whole")
    assert status == 1
    assert "the log of the engine says nothing of CUDA0" in results["whole"]["failed"]
    modes = results["whole"]["modes"]
    measured = [mode["mode"] for mode in modes if not mode["left_out"]]
    assert {"hybrid", "experts-in-ram", "legacy"} <= {*measured}

    machine.say_as_planned(modes)
    forget(machine)
    status, results = machine.run("whole")
    assert status == 0, results["whole"]["failed"]
    for mode in results["whole"]["modes"]:
        if mode["mode"] in measured:
            assert abs(mode["cuda_bytes"][0] - CUDA_MIB * MIB) <= 2 * MIB
            assert [rate["depth_tokens"] > 300 for rate in mode["rates"][:2]] == [False, True]

    assert machine.run("cards")[0] == 0
    row = "| 1 x NVIDIA H200, 580.65.06 | UD-IQ1_S, 5 layers, zeros | hybrid | 100.0% / 100.0% / 100.0% | 480 |"
    assert row in page(machine)
    assert "each token goes to the same experts" in page(machine).lower()

    machine.say_as_planned(modes, factor=1.2)
    forget(machine)
    status, results = machine.run("whole")
    assert status == 1
    assert results["whole"]["failed"].count("of weights, planned are") >= len(measured)

    machine.say_as_planned(modes, cuda_mib=1100)
    forget(machine)
    assert "more than the reserve of 1,024 MiB" in machine.run("whole")[1]["whole"]["failed"]


def test_what_cuda_takes_is_known_where_the_driver_does_not_tell_of_processes(machine: Machine):
    machine.card(24_564, tells=False)
    machine.say_as_planned(machine.run("mixed")[1]["mixed"]["modes"])
    forget(machine)
    status, results = machine.run("mixed")
    assert status == 0, results["mixed"]["failed"]
    assert abs(results["mixed"]["modes"][0]["cuda_bytes"][0] - CUDA_MIB * MIB) <= 2 * MIB


def test_a_model_that_needs_cards_and_ram(machine: Machine):
    assert machine.run("hybrid")[1]["hybrid"]["left_out"] == "every quant fits the cards"
    machine.card(1049)
    result = machine.run("hybrid")[1]["hybrid"]
    assert result["model"]["quant"] != "UD-IQ1_S"
    hybrid = result["modes"][0]
    assert min(device["weights_bytes"] for device in hybrid["planned"]) > 0


def test_fewer_layers_of_zeros_and_of_random_weights(machine: Machine):
    _, results = machine.run("cut", "mixed")
    cut, mixed = results["cut"], results["mixed"]
    assert [result["model"]["weights"] for result in (cut, mixed)] == ["zeros", "random"]
    assert cut["model"]["layers"] == mixed["model"]["layers"] < layout.LAYERS
    assert cut["planned_for"]["gpus"]["memory"] != f"{24_564 * MIB} B"
    for result in (cut, mixed):
        said = " ".join(result["degenerate"])
        assert f"{cut['model']['layers']} of R1's 61 layers" in said
        assert "Each layer is narrower than R1's" in said
        assert "shapes of each layer are R1's" not in said
        assert result["cards"][0]["driver"] == "580.65.06"
    assert [mode["mode"] for mode in cut["modes"]] == ["hybrid", "rule", "experts-in-ram"]
    assert min(device["weights_bytes"] for device in cut["modes"][0]["planned"]) > 0
    assert "zero" in cut["degenerate"][0]
    assert "zero" not in " ".join(mixed["degenerate"])
    files = list((machine.folder / "work/models").glob("*-mla-*"))
    blocks = {path.name.rpartition("-")[2]: path.stat().st_blocks * 512 / path.stat().st_size for path in files}
    assert blocks["zeros.gguf"] < 0.1 < 0.9 < blocks["random.gguf"]


def test_both_forms_lie_whole_on_the_card(machine: Machine):
    latent, legacy = machine.run("forms")[1]["forms"]["modes"]
    assert (latent["mode"], legacy["mode"]) == ("hybrid", "legacy")
    for mode in (latent, legacy):
        assert mode["rates"]
        assert "--override-tensor" not in mode["arguments"]
    assert legacy["planned"][0]["kv_bytes"] > 5 * latent["planned"][0]["kv_bytes"]


def test_settings_are_measured_as_tune_does(machine: Machine):
    status, results = machine.run("tune")
    assert status == 0, results["tune"]["failed"]
    assert results["tune"]["tuning"]["state"] == "done"
    assert len(results["tune"]["tuning"]["measured"]) > 1
    machine.program("llama-batched-bench", "#!{python} -IS\nimport sys\nsys.exit('no memory')\n")
    (machine.folder / "work/tune.json").unlink()
    status, results = machine.run("tune")
    assert status == 1
    assert re.search("cannot be measured: .*no memory", results["tune"]["failed"])


def test_the_restrictions_hold_and_an_engine_that_they_break_fails(machine: Machine):
    status, results = machine.run("unit")
    assert status == 0, results["unit"]["failed"]
    unit = results["unit"]
    assert unit["by"] == "hand"
    assert unit["refused"]["MemoryDenyWriteExecute"]
    assert not any(unit["refused_without"].values())
    assert "MemoryDenyWriteExecute" in unit["tried"]
    assert "DeviceAllow" in unit["untried"]
    machine.run("cards")
    assert "| NVIDIA H200, 580.65.06 | hand | UMask, NoNewPrivileges, " in page(machine)


def test_an_engine_that_its_restrictions_break_is_a_failure(machine: Machine):
    machine.program("llama-bench", BENCH, writes_code=True)
    status, results = machine.run("unit")
    assert status == 1
    assert "confined.py" in results["unit"]["failed"]
    assert "PermissionError" in results["unit"]["failed"]


def test_restrictions_that_do_not_hold_are_a_failure(machine: Machine):
    path = machine.bundle / restrictions.FILE
    of_unit = json.loads(path.read_text())
    path.write_text(json.dumps({**of_unit, "system_calls": [*range(460)]}))
    status, results = machine.run("unit")
    assert status == 1
    assert "what was to be refused is not" in results["unit"]["failed"]


def test_a_bundle_without_the_wheels_says_so(machine: Machine):
    """Half of them is no better than none, and the missing one is named."""
    lying = (machine.bundle / "wheels").resolve()
    (machine.bundle / "wheels").unlink()
    shutil.copytree(lying, machine.bundle / "wheels", ignore=shutil.ignore_patterns("typing_inspection-*"))
    status, results = machine.run("cut", stderr=f"{machine.bundle}/wheels/typing_inspection-")
    assert (status, results) == (2, {})
    next((machine.bundle / "wheels").glob("pydantic-*")).write_text("")
    assert machine.run("cut", stderr=": not what requirements.lock names")[0] == 2


@pytest.mark.parametrize("mla", [True, False])
def test_the_full_model_is_r1(tmp_path: Path, mla: bool):
    path = models.write(tmp_path / "r1.gguf", "UD-IQ1_S", mla=mla)
    wanted = layout.model("UD-IQ1_S", mla=mla)
    # Not by `vars`: what a model has worked out once it keeps, and other tests may have asked this one. The file has no chat template.
    assert replace(gguf.read(path), name=wanted.name, thinks=wanted.thinks) == wanted
    # File systems differ in how much they reserve behind what is written, so no number of bytes holds for all.
    assert path.stat().st_blocks * 512 < path.stat().st_size / 100


def test_the_restrictions_are_those_of_the_unit(tmp_path: Path):
    found = json.loads(restrictions.write(tmp_path).read_text())
    names = [name for name, _ in found["directives"]]
    assert {"MemoryDenyWriteExecute", "DeviceAllow", "SystemCallFilter", "RestrictAddressFamilies"} <= {*names}
    assert not {"User", "ExecStart", "Environment", "LoadCredential"} & {*names}
    assert {*confined.APPLIED} <= {*names}
    if found["system_calls"]:
        calls = {*found["system_calls"]}
        assert {0, 1, 9, 10, 59, 231} <= calls  # read, write, mmap, mprotect, execve, exit_group
        assert (
            not {101, 165, 206, 248, 250, 310, 323, 425} & calls
        )  # ptrace, mount, io_setup, keys, other processes, io_uring
