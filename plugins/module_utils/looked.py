"""What came of a look, in words: which of the things that tasks expect of a host are not so. Controller and host say it alike."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


_WHOLE = " has owner and mode "
_STILL_TO_BE_MADE = "up to this point in real play"


def summary(asked: Sequence[Mapping[str, Any]], answers: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What the answers to all questions come to.

    Args:
        asked: the expectations, each with the keys `step`, `task`, `module` and `arguments`.
        answers: what the modules have answered, in the same order.

    Returns:
        `differences`: a list of {step, task, what}. `unknown`: why not all could be told; empty where it was. `stays`: a list of what is an
        administrator's own. `built_anew`: whether a platform has built the host anew, as a container, so that all of this was lost.
    """
    both = list(zip(asked, answers, strict=True))
    # Much seems to differ then, and no run mends it.
    if away := [str(what) for _, answer in both if answer.get("away") for what in answer["differences"]]:
        return {"differences": [], "unknown": away[0], "stays": [], "built_anew": False}
    found = [
        {"step": each["step"], "task": each["task"], "what": what}
        for each, answer in both
        for what in differences(each, answer)
    ]
    # Where two modules name the same thing, the first one mends it. One that knows owner and mode together says more.
    whole = {each["what"].partition(_WHOLE)[0] for each in found if _WHOLE in each["what"]}
    found = [each for each in found if not any(each["what"].startswith(f"{path} has the ") for path in whole)]
    told = {each["what"]: each for each in reversed(found)}
    silent = [f"{each['step']}, {each['task']}: {answer['error']}" for each, answer in both if "error" in answer]
    # Several modules may say so of the same cause.
    silent += dict.fromkeys(str(what) for _, answer in both if answer.get("untold") for what in answer["differences"])
    return {
        "differences": [each for each in found if told[each["what"]] is each],
        "unknown": "; ".join(silent),
        "stays": list(dict.fromkeys(text for _, answer in both for text in warnings(answer))),
        "built_anew": any(answer.get("built_anew", False) for _, answer in both),
    }


def warnings(answer: Mapping[str, Any]) -> list[str]:
    """What a module warns of. That an account is still to be made, which Ansible says in check mode, is no news."""
    return [str(each) for each in answer.get("warnings", ()) if not str(each).endswith(_STILL_TO_BE_MADE)]


def differences(expectation: Mapping[str, Any], answer: Mapping[str, Any]) -> list[str]:
    """What differs from an expectation, by what its module answered in check mode."""
    if answer.get("untold"):
        return []
    if answer.get("failed"):
        msg = str(answer.get("msg", "it fails")).strip()
        is_gone = expectation["module"] == "ansible.modules.file" and msg.endswith("is absent, cannot continue")
        return [f"{expectation['arguments']['path']} is missing" if is_gone else msg]
    return _in_words(expectation, answer) if answer.get("changed") else []


def _in_words(expectation: Mapping[str, Any], answer: Mapping[str, Any]) -> list[str]:
    if told := answer.get("differences"):
        return [str(each) for each in told]
    if expectation["module"] == "ansible.modules.file":
        return _of_file(str(expectation["arguments"]["path"]), answer)
    return [f"a run would do this: {expectation['task']}"]


def _of_file(path: str, answer: Mapping[str, Any]) -> list[str]:
    diff = answer.get("diff") or {}
    before, after = diff.get("before") or {}, diff.get("after") or {}
    if before.get("state") == "absent":
        return [f"{path} is missing"]
    if after.get("state") == "absent":
        return [f"{path} is there, and should not be"]
    found = [
        f"{path} has the {key} {before[key]}, and should have {after[key]}"
        for key in before
        if key != "path" and key in after
    ]
    return found + [f"{path} has another content than it should have"] * bool(answer.get("content")) or [
        f"{path} is not as it should be"
    ]
