"""The modes that `r1prov bench --modes` compares: what each would be and take, what a host is told, and what people are shown."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from r1prov.cli import main, show_modes
from r1prov.cli.verbs import command
from r1prov.common.errors import Exit
from r1prov.decision import decide
from r1prov.machines.tuned import Hardware, Measurement, Tuned
from r1prov.offload import experiment, modes
from r1prov.offload.experiment import Subject, servers
from r1prov.output import console
from r1prov.runs import modes as measured_modes
from r1prov.runs import run as runs
from r1prov.runs.events import Finished, HostFailed, TaskDone
from r1prov.runs.report import HostReport, Recorder, RunReport
from r1prov.runs.run import Prepared
from r1prov.site.select import last_applied
from r1prov.site.state import SiteState
from tests.cuda import experiments
from tests.cuda import models as other_models
from tests.golden import assert_golden

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from r1prov.decision import Decision

ALL = ",".join(modes.MODES)
LIMIT_S = 1200


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(measured_modes, "now", lambda: "2026-11-28T23:00:00+00:00")
    return tmp_path / "r1prov.yml"


def ran(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as ended:
        main(("bench", *words))
    out, err = capsys.readouterr()
    return int(ended.value.code or 0), out, err


def decided(site: Path, text: str) -> Decision:
    site.write_text(text)
    return decide(last_applied(None, ())[0], lambda _: None)


def lined(text: str) -> str:
    return "".join(f"{line.rstrip()}\n" for line in text.splitlines())


def rate(users: int, depth: int, prompt: float, decode: float, total: float) -> dict[str, Any]:
    return {
        "users": users,
        "depth_tokens": depth,
        "prompt_tokens": 512,
        "decode_tokens": 32,
        "prompt_tokens_per_second": prompt,
        "decode_tokens_per_second": decode,
        "decode_tokens_per_second_total": total,
        "wall_s": 12.5,
    }


def result(*found: dict[str, Any], untried: Sequence[str] = (), state: str = "done") -> dict[str, Any]:
    """A result of role `measure`."""
    return {"job": {}, "state": state, "modes": list(found), "untried": list(untried)}


def measured(mode: str, decode: float, slots: int, cards: Sequence[int] = ()) -> dict[str, Any]:
    return {
        "mode": mode,
        "skipped": "",
        "failed": "",
        "load_s": 61.5,
        "seconds": 150.0,
        "rates": [
            rate(1, 0, decode * 12, decode, decode),
            rate(1, 16_000, decode * 10, decode * 0.8, decode * 0.8),
            *([rate(slots, 0, decode * 11, decode / 2, decode * 1.5)] if slots > 1 else []),
            rate(2 * slots, 0, decode * 11, decode / 2, decode * 1.4),
        ],
        "memory": {"devices_bytes": list(cards), "ram_bytes": 52 * 2**30, "ram_anonymous_bytes": 3 * 2**30},
        "load": {"others_cores": 3.2, "cores": 64, "foreign": False},
        "earlier": False,
        "measured_unix_s": 1790000000,
    }


def broken(mode: str, **why: str) -> dict[str, Any]:
    return {**measured(mode, 1, 1), "rates": [], "memory": {}, "skipped": "", "failed": "", **why}


@pytest.mark.parametrize(("profile", "asked"), [("4x4090", "cpu,hybrid,gpu,rule,fit"), ("4xh800", ALL), ("cpu", ALL)])
def test_a_check_says_of_each_mode_what_it_would_take(
    site: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, profile: str, asked: str
) -> None:
    """The host's name leads nowhere. `make golden` writes the files again."""
    site.write_text(f"profile: {profile}\nhosts: [gpu1.invalid]\n")
    found = {}
    for width in (40, 80, console.UNBOUNDED):
        monkeypatch.setattr(console.out, "width", width)
        code, out, _ = ran(capsys, "--modes", asked, "--check")
        assert code == 0
        found[f"{width}.txt" if width < console.UNBOUNDED else "pipe.txt"] = lined(out)
    found["document.json"] = ran(capsys, "--modes", asked, "--check", "--json")[1]
    assert_golden(found, f"modes/{profile}")
    assert all(len(line) <= 80 for line in found["80.txt"].splitlines())


def test_a_check_of_a_kind_of_server_needs_no_site_and_leaves_none(
    site: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    site.write_text("profile: 4x4090\nhosts: [gpu1.invalid]\n")
    with_site = json.loads(ran(capsys, "--modes", ALL, "--check", "--json")[1])["hosts"]["gpu1.invalid"]
    elsewhere = site.parent / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    monkeypatch.setenv("XDG_STATE_HOME", str(elsewhere / "state"))
    code, out, _ = ran(capsys, "--modes", ALL.upper(), "--check", "--profile", "4x4090", "--json")
    assert code == 0
    assert json.loads(out)["hosts"] == {"4x4090": with_site | {"host": "4x4090"}}
    assert not list(elsewhere.iterdir())
    code, _, err = ran(capsys, "--modes", "cpu", "--check")
    assert code == Exit.SITE
    assert "no site is known here" in err
    assert "or name a kind of server, which need not be there: --profile 4x4090" in " ".join(err.split())
    assert "--profile" not in ran(capsys, "--modes", "cpu")[2]  # Such a server cannot be measured.
    for words in (["--modes", "cpu"], ["--modes", "cpu", "--check", "gpu1"], []):
        code, _, err = ran(capsys, *words, "--profile", "4x4090")
        assert code == Exit.USAGE
        assert "--profile" in err


def test_what_was_measured_stands_beside_what_was_planned(
    site: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    decision = decided(site, "profile: 4x4090\nhosts: [gpu1]\n")
    found = measured_modes.servers(decision, "gpu1", tuple(modes.MODES))
    cards = [int(23.4 * 2**30)] * 4
    told = result(
        measured("cpu", 3.1, 1),
        measured("hybrid", 15.25, 1, cards),
        broken("fit", failed="llama-server ended with 1: out of memory"),
        broken("legacy", skipped="the published files do not lie there any more, and are not fetched for this"),
        measured("ollama", 6.2, 1, cards),
        untried=["experts-in-ram"],
    )
    document = measured_modes.report(decision, "gpu1", found, LIMIT_S, told)
    texts = {}
    for width in (40, 80, console.UNBOUNDED):
        monkeypatch.setattr(console.out, "width", width)
        show_modes.compared(document)
        name = f"{width}.txt" if width < console.UNBOUNDED else "pipe.txt"
        texts[name] = lined(capsys.readouterr().out)
    assert all(len(line) <= 80 for line in texts["80.txt"].splitlines())
    assert_golden(texts | {"document.json": json.dumps(document, indent=2) + "\n"}, "modes/measured")
    kept = measured_modes.keep(SiteState.of(site).reports, document)
    assert (kept.name, json.loads(kept.read_text())) == ("gpu1.modes.json", document)


def test_a_measurement_that_was_broken_off_says_so_of_each_mode(site: Path) -> None:
    decision = decided(site, "profile: 4x4090\nhosts: [gpu1]\n")
    found = measured_modes.servers(decision, "gpu1", ("cpu", "hybrid", "gpu", "fit"))
    told = result(measured("cpu", 3, 1), untried=["fit"], state="running")
    document = measured_modes.report(decision, "gpu1", found, LIMIT_S, told)
    left_out = [mode["left_out"] for mode in document["modes"]]
    assert (left_out[0], left_out[1], left_out[3]) == ("", measured_modes.BROKEN_OFF, measured_modes.NO_TIME)
    assert left_out[2].startswith("CUDA0 runs out of memory")


def test_what_keeps_modes_from_being_compared_is_said(site: Path, capsys: pytest.CaptureFixture[str]) -> None:
    decision = decided(site, "profile: demo\nhosts: [gpu1]\n")
    found = measured_modes.servers(decision, "gpu1", ("cpu", "ollama"))
    load = {"others_cores": 3.2, "cores": 8, "foreign": True}
    told = result(measured("cpu", 150, 2) | {"earlier": True}, measured("ollama", 120, 2) | {"load": load})
    show_modes.compared(measured_modes.report(decision, "gpu1", found, LIMIT_S, told))
    text = capsys.readouterr().out
    assert "cpu: kept from a run that was stopped, of 2026-09-21 14:13 UTC" in text
    assert "ollama: measured while other processes kept 3.2 of 8 cores busy" in text


def test_several_slots_have_a_column_of_their_own(site: Path, capsys: pytest.CaptureFixture[str]) -> None:
    decision = decided(site, "profile: demo\nhosts: [gpu1]\n")
    found = measured_modes.servers(decision, "gpu1", ("cpu", "ollama"))
    told = result(measured("cpu", 150, 2), measured("ollama", 120, 2))
    show_modes.compared(measured_modes.report(decision, "gpu1", found, LIMIT_S, told))
    text = capsys.readouterr().out
    head = next(line for line in text.splitlines() if line.startswith("tokens/s"))
    assert head.split() == ["tokens/s", "prompt", "1", "user", "deep", "2", "users", "4", "users", "plan"]
    cpu = next(line for line in text.splitlines() if line.startswith("cpu"))
    assert cpu.split()[1:6] == ["1800.0", "150.00", "120.00", "225.00", "210.00"]
    bars = [line.split()[-1] for line in text.splitlines() if line.startswith(("cpu", "ollama")) and "#" in line]
    assert [len(bar) for bar in bars] == [8, 6]


def test_a_host_is_told_of_each_mode_that_fits(site: Path) -> None:
    """The servers differ in where the model lies, and in nothing else."""
    decision = decided(site, "profile: 4x4090\nhosts: [gpu1]\n")
    found = measured_modes.servers(decision, "gpu1", tuple(modes.MODES))
    told = measured_modes.variables(decision, "gpu1", found, 90, at_once=True)
    assert (told["measure_limit_s"], told["measure_now"]) == (90, True)
    by_mode = {each["mode"]: each for each in told["measure_modes"]}
    assert [*by_mode] == ["cpu", "hybrid", "experts-in-ram", "fit", "legacy", "ollama"]
    assert tuple(by_mode["hybrid"]["arguments"]) == decision.plan.arguments
    for mode, each in by_mode.items():
        words = each["arguments"]
        assert (each["slots"], each["context_per_slot"]) == (1, 32_768)
        assert each["decode_estimate"] > 0
        assert not {"--model", "--host", "--port", "--alias", "--api-key"} & {*words}
        if mode != "ollama":
            values = {option: words[words.index(option) + 1] for option in ("--ctx-size", "--parallel")}
            assert values == {"--ctx-size": "32768", "--parallel": "1"}
        if mode not in ("ollama", "legacy"):
            assert words[words.index("--cache-type-k") + 1] == "f16"
            assert each["model"] == decision.model_file
    assert by_mode["cpu"]["arguments"][by_mode["cpu"]["arguments"].index("--n-gpu-layers") + 1] == "0"
    fit = by_mode["fit"]["arguments"]
    assert fit[fit.index("--fit") + 1] == "on"
    assert not {"--n-gpu-layers", "--tensor-split", "--override-tensor"} & {*fit}
    assert by_mode["legacy"]["model"].endswith("/DeepSeek-R1-UD-IQ1_S-00001-of-00003.gguf")
    assert by_mode["ollama"] | {"decode_estimate": 0} == {
        "mode": "ollama",
        "engine": "ollama",
        "arguments": [],
        "model": decision.model_file,
        "ollama_model": decision.alias,
        "environment": {"CUDA_DEVICE_ORDER": "PCI_BUS_ID"},
        "slots": 1,
        "context_per_slot": 32_768,
        "decode_estimate": 0,
        "absent": measured_modes.ABSENT["ollama"],
    }


def by_mode(subject: Subject, *asked: str) -> dict[str, experiment.Server]:
    return {server.mode: server for server in servers(asked or tuple(modes.MODES), subject)}


def test_what_is_the_same_is_not_measured_twice() -> None:
    large = experiments.subject("4xh800")
    found = by_mode(large)
    assert found["gpu"].left_out == "the same as hybrid"
    assert found["fit"].left_out == "the same as rule"
    assert by_mode(large, "gpu", "hybrid")["hybrid"].left_out == "the same as gpu"
    assert not by_mode(large, "fit")["fit"].left_out


def test_the_table_of_a_check_says_of_each_mode_what_is_done(site: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A mode that would be the same as another is left out, although it fits."""
    site.write_text("profile: 4xh800\nhosts: [gpu1]\n")
    out = ran(capsys, "--modes", "hybrid,gpu,legacy", "--check")[1]
    outcomes = {line.split()[0]: line for line in reversed(out.splitlines()) if "  " in line}
    assert "left out" in outcomes["gpu"]
    assert "gpu: left out: the same as hybrid\n" in out
    assert "does not fit" in outcomes["legacy"]
    site.write_text("profile: cpu\nquant: Q4_K_M\noverride: [fit]\nhosts: [gpu1]\n")
    code, out, *_ = ran(capsys, "--modes", "hybrid,cpu", "--check")
    assert code == Exit.PREFLIGHT
    assert "hybrid: does not fit, and is measured only where it serves nevertheless: " in out
    assert "cpu: left out: the same as hybrid\n" in out
    assert re.search(r"^cpu .* left out$", out, re.MULTILINE)


def test_what_ollama_is_told_stands_in_document_and_table(site: Path, capsys: pytest.CaptureFixture[str]) -> None:
    site.write_text("profile: 4x4090\nhosts: [gpu1]\n")
    words = ("--modes", "hybrid,ollama", "--check")
    told = json.loads(ran(capsys, *words, "--json")[1])["hosts"]["gpu1"]["modes"]
    plan = decided(site, site.read_text()).plan
    expected = {"num_gpu": plan.ollama.gpu_layers, "num_ctx": 32768, "num_batch": plan.ollama.micro_batch}
    assert [mode["ollama"] for mode in told] == [None, expected]
    assert f"ollama: num_gpu {plan.ollama.gpu_layers}, num_ctx 32768, num_batch" in ran(capsys, *words)[1]


def test_a_machine_without_cards_has_the_modes_that_mean_something_there() -> None:
    found = by_mode(experiments.subject("cpu"))
    assert found["cpu"].arguments == experiments.subject("cpu").plan.arguments
    assert found["hybrid"].left_out == "the same as cpu"
    assert {found[mode].left_out for mode in ("gpu", "rule", "fit", "experts-in-ram")} == {experiment.NO_CARDS}
    assert not found["ollama"].left_out


def test_a_model_whose_layers_are_not_known_has_no_figures(site: Path, capsys: pytest.CaptureFixture[str]) -> None:
    unknown = replace(experiments.subject("cpu"), model=None, published=None)
    unknown = replace(unknown, plan=replace(unknown.plan, outcome=None))
    found = by_mode(unknown)
    assert [mode for mode, server in found.items() if not server.left_out] == ["cpu", "ollama"]
    assert found["legacy"].left_out == experiment.NO_LAYERS
    assert not any(server.outcome for server in found.values())
    decision = replace(decided(site, "profile: cpu\nhosts: [gpu1]\n"), model=None, plan=unknown.plan)
    told = measured_modes.variables(decision, "gpu1", tuple(found.values()), 90, at_once=False)["measure_modes"]
    assert {each["decode_estimate"] for each in told} == {0.0}
    document = measured_modes.report(decision, "gpu1", tuple(found.values()), 90, result(measured("cpu", 3, 1)))
    show_modes.compared(document)
    assert ["cpu", "52.0"] in [line.split() for line in capsys.readouterr().out.splitlines()]
    assert document["modes"][0]["fits"] is None


def test_a_dense_model_has_no_experts_and_no_other_form() -> None:
    name = next(name for name, describe in other_models.MODELS.items() if not describe().model(name).experts_used)
    model = other_models.MODELS[name]().model(name)
    r1 = experiments.subject("4x4090")
    serving = r1.serving.model_copy(update={"context_per_slot": min(model.context_length, 4096)})
    plan = experiment.plan_model(model, r1.machine, serving, floor=0, n_bytes=model.n_bytes)
    dense = replace(
        r1, model=model, published=model, serving=serving, plan=plan, arguments=plan.arguments, published_bytes=1
    )
    found = by_mode(dense)
    assert found["experts-in-ram"].left_out == "the model has no experts"
    assert found["legacy"].left_out == "the model has no other form than the published one"
    assert found["cpu"].outcome
    assert found["cpu"].outcome.fits


def test_files_served_as_published_are_the_legacy_mode_already() -> None:
    subject = experiments.subject("4x4090")
    assert by_mode(replace(subject, model=subject.published))["legacy"].left_out.startswith("the same as hybrid")


def test_what_serves_is_measured_although_the_plan_says_that_it_does_not_fit(site: Path) -> None:
    decision = decided(site, "profile: cpu\nquant: Q4_K_M\noverride: [fit]\nhosts: [gpu1]\n")
    hybrid, ollama = measured_modes.servers(decision, "gpu1", ("hybrid", "ollama"))
    assert hybrid.outcome
    assert not hybrid.outcome.fits
    assert not hybrid.left_out
    assert ollama.left_out


def test_a_tuned_host_is_measured_as_it_serves(site: Path) -> None:
    decision = decided(site, "profile: 4x4090\nhosts: [gpu1, gpu2]\n")
    hardware = Hardware(cpu="Xeon", cores=64, threads=128, ram=480 * 10**9, cards=())
    arguments = tuple("48" if word == "64" else word for word in decision.plan.arguments)
    kept = Tuned(
        subject=decision.subject("gpu1", hardware),
        chosen={"threads": "48"},
        arguments=arguments,
        measured=(Measurement(chosen={"threads": "64"}, seconds=1),),
        reason="faster",
        ended="2026-11-28T20:00:00+00:00",
        served=True,
    )
    tuned, _ = decision.with_tuned({"gpu1": kept}, {})
    told = {host: measured_modes.servers(tuned, host, ("hybrid",))[0] for host in ("gpu1", "gpu2")}
    assert told["gpu1"].arguments == arguments
    assert told["gpu2"].arguments == decision.plan.arguments
    assert told["gpu1"].outcome
    assert told["gpu1"].outcome.devices == decision.plan.outcome.devices  # type: ignore[union-attr]


def test_a_site_without_ollama_says_so(site: Path, capsys: pytest.CaptureFixture[str]) -> None:
    site.write_text("profile: cpu\nollama: {enabled: false}\nhosts: [gpu1.invalid]\n")
    told = json.loads(ran(capsys, "--modes", "cpu,ollama", "--check", "--json")[1])
    ollama = told["hosts"]["gpu1.invalid"]["modes"][1]
    assert ollama["left_out"].startswith("the site has no Ollama")
    assert (ollama["fits"], ollama["planned"]) == (None, None)
    shown = ran(capsys, "--modes", "cpu,ollama", "--check")[1]
    assert "left out" in next(line for line in shown.splitlines() if line.startswith("ollama "))
    assert "ollama: left out: the site has no Ollama" in shown


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--modes", ""], "--modes names no mode; there are: cpu, hybrid"),
        (["--modes", "cpu", "--also", ","], "--also names no mode"),
        (["--modes", "cpu,gpus"], "--modes: there is no mode `gpus`; there are: cpu, hybrid"),
        (["--modes", "cpu,,gpu"], "--modes: there is no mode ``"),
        (["--modes", "cpu", "--also", "fit,cpu"], "name cpu twice"),
        (["--also", "cpu"], "--also goes with --modes"),
        (["--limit", "5"], "`5` is not a duration"),
        (["--limit", "0s"], "--limit: `0s` is no time at all: write `1s` or more"),
        (["--now", "--check"], "--now, --check goes with --modes"),
        (["--modes", "cpu", "--limit", "5"], "`5` is not a duration"),
        (["--modes", "cpu", "--check", "--limit", "99999999999999h"], "`99999999999999h` is longer than a week"),
        (["--llama-bench"], "No such option"),
    ],
)
def test_what_is_asked_wrongly_is_said_at_once(
    site: Path, capsys: pytest.CaptureFixture[str], words: list[str], said: str
) -> None:
    site.write_text("profile: 4x4090\nhosts: [gpu1.invalid]\n")
    code, out, err = ran(capsys, *words)
    assert (code, out) == (Exit.USAGE, "")
    assert said in " ".join(err.split())


@pytest.mark.parametrize(
    ("profile", "modes", "expected", "said"),
    [
        ("cpu", "gpu,rule", Exit.SITE, "gpu1.invalid: gpu: the machine has no cards"),
        ("4x4090", "gpu", Exit.PREFLIGHT, "CUDA0 runs out of memory"),
    ],
)
def test_modes_of_which_none_can_be_measured_are_refused_before_anyone_is_contacted(
    site: Path, capsys: pytest.CaptureFixture[str], profile: str, modes: str, expected: Exit, said: str
) -> None:
    site.write_text(f"profile: {profile}\nhosts: [gpu1.invalid]\n")
    code, _, err = ran(capsys, "--modes", modes)
    assert code == expected
    assert said in err


def test_a_host_that_is_away_is_named_and_nothing_is_claimed(site: Path, capsys: pytest.CaptureFixture[str]) -> None:
    site.write_text("profile: cpu\nhosts: [gpu1.invalid]\n")
    code, out, err = ran(capsys, "--modes", "cpu", "--limit", "2m", "--json")
    assert code == Exit.UNREACHABLE
    assert "will not answer" not in err  # A host that cannot be reached is not paused either.
    assert json.loads(out)["hosts"] == {}
    assert json.loads(out)["problems"][0]["where"] == "gpu1.invalid"
    assert not list(SiteState.of(site).reports.glob("*.modes.json"))


@pytest.mark.parametrize("is_held", [False, True])
def test_a_pause_is_announced_once_the_host_is_locked(
    site: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *, is_held: bool
) -> None:
    site.write_text("profile: cpu\nhosts: [gpu1.invalid]\n")
    (host,) = last_applied(None, ())[1]
    locked = {"msg": f"{host.name} is being changed by olga. Remedy: wait for it to end.", "locked": True}
    answers = {
        False: HostFailed(host.name, "", "Lock the host", locked),
        True: TaskDone(host.name, "", "Lock the host", False, {"held": True}, "r1.prov.host_lock"),
    }
    said_before = []

    def execute(*_: object, **__: object) -> Iterator[object]:
        said_before.append(capsys.readouterr().err)
        yield answers[is_held]
        yield Finished(0 if is_held else 2, site)

    monkeypatch.setattr(runs, "prepare", lambda decision, hosts, *_, **__: Prepared(decision, hosts, ()))
    monkeypatch.setattr(runs.ansible, "execute", execute)
    code, _, err = ran(capsys, "--modes", "cpu,gpu", "--limit", "2m")
    told = " ".join(err.split())
    assert code == (Exit.OK if is_held else Exit.LOCKED)
    assert "will not answer" not in said_before[0]
    assert (f"While that is measured, {host.name} will not answer, for up to 2m." in told) == is_held
    assert ("gpu is not measured: the machine has no cards" in told) == is_held


def test_the_report_has_what_was_measured_even_where_the_run_failed_afterwards() -> None:
    hosts = {name: HostReport() for name in ("a", "b", "c")}
    record = Recorder(RunReport("r1prov bench", "default", "cpu", "UD-IQ1_S", "2026-11-28T03:00:00+00:00", hosts))
    found = result(measured("cpu", 3, 1))
    record.event(TaskDone("a", "measure", "measure", changed=True, result={"result": found}), 1.0)
    record.event(HostFailed("b", "measure", "measure", {"msg": "no", "result": found}), 2.0)
    record.event(TaskDone("c", "measure", "measure", changed=True, result={"result": {"measured": []}}), 3.0)
    assert [host.modes for host in record.report.hosts.values()] == [found, found, None]


def test_the_shell_is_offered_modes_after_a_comma() -> None:
    option = next(each for each in command("bench").params if each.name == "modes")
    shown = [item.value for item in option.shell_complete(None, "cpu,h")]
    assert shown == ["cpu,hybrid"]
