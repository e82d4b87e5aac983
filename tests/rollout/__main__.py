"""`make rollout`: upgrades of three engines while people ask at their door, to a good version and to bad ones. What came of each is kept.

All versions are real engines. A bad one has a habit: it never becomes healthy, it crashes after a minute, it talks gibberish, it is three
times slower, or it stands still after ten answers.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import sys
import tarfile
import tempfile
import time
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from r1prov import lab
from r1prov.common import paths, signals
from r1prov.common.errors import Exit
from tests.e2e.crowd import Crowd
from tests.e2e.people import Operator, told
from tests.fixtures import engine, saying, shards, surroundings
from tests.fixtures.hub import Hub
from tests.tree import commit

if TYPE_CHECKING:
    from collections.abc import Iterator

KEPT = Path(__file__).parent / "last-result.json"
SOURCE = Path(__file__).parent / "source"
PORT = 8096
PEOPLE, TOKENS = 4, 8
ANSWERS = 500
"""So many answers at least come while a good version is rolled out. People go on asking until then."""
HABITS = ("good", "never-healthy", "crashes", "gibberish", "slow", "wedged")
"""The names of versions, in the order of the numbers in habit.c."""
UNIT = "r1prov-llama-server"


@dataclass
class Service:
    """A door and three engines.

    Attributes:
        operator: whose site it is.
        hosts: the door, then the engines.
        sources: of the site.
        folder: for archives of versions.
    """

    operator: Operator
    hosts: list[lab.LabHost]
    sources: dict[str, Any]
    folder: Path

    def wants(self, habit: str = "") -> None:
        """Writes a site with a version of this habit; without, with the real engine that the hosts have."""
        front, *engines = self.hosts
        duties = {front.name: {"does": ["door"]}}
        duties |= {each.name: {"does": ["engine"], "private": each.address} for each in engines}
        sources, more = self.sources, dict[str, Any]()
        if habit:
            archive = self.archive(habit)
            digest = hashlib.sha256(archive.read_bytes()).hexdigest()
            sources = {**sources, "llama_cpp": {"type": "archive", "archive": str(archive), "sha256": digest}}
            more = {"versions": {"llama_cpp": habit}}
        gateway = {"server_name": front.address, "tls": {"type": "local-authority"}}
        without = {"open_webui": {"enabled": False}, "ollama": {"enabled": False}, "slots": 1}
        self.operator.site(self.hosts, duties=duties, sources=sources, gateway=gateway, **without, **more)

    def archive(self, habit: str) -> Path:
        """The source archive of a version."""
        tree = self.folder / habit
        shutil.copytree(SOURCE, tree, dirs_exist_ok=True)
        (tree / "habit.h").write_text(f"#define HABIT {HABITS.index(habit)}\n")
        path = self.folder / f"llama-{habit}.tar.gz"
        if not path.exists():
            with tarfile.open(path, "w:gz") as packed:
                packed.add(tree, f"llama-{habit}")
        return path

    def starts(self) -> dict[str, str]:
        """Engine -> what tells this start of it from another, and the release that it runs."""
        script = f"systemctl show --value --property InvocationID {UNIT}; readlink -f /opt/r1prov/llama.cpp/current"
        return {host.name: told(host, script) for host in self.hosts[1:]}

    def crowd(self) -> Crowd:
        """People at the door."""
        trust = str(self.operator.folder / ".r1prov" / "authority" / "authority.crt")
        return Crowd(f"https://{self.hosts[0].address}", self.operator.secret("api-key"), trust)


@contextmanager
def served() -> Iterator[Service]:
    """A door and three engines that are set up. All goes at the end."""
    names = [f"rollout-{name}" for name in ("front", "one", "two", "three")]
    hub = paths.cache_dir() / "hub"
    shards.demo_shards(hub)
    image = engine.image("bookworm", saying.to_stderr)
    with ExitStack() as stack:
        for name in names:
            stack.callback(lab.down, name)
        hosts = [lab.up(name, image=image, say=saying.to_stderr) for name in names]
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        stack.enter_context(Hub(hub, address=lab.GATEWAY, port=PORT))
        weights = [{"type": "hub", "endpoint": f"http://{lab.GATEWAY}:{PORT}"}]
        (folder / "site").mkdir()
        service = Service(Operator(folder / "site"), hosts, {**surroundings.sources(), "weights": weights}, folder)
        for host in hosts[1:]:
            told(host, "cp -a /opt/r1prov/llama.cpp/current/bin /usr/local/lib/real-llama")
        service.wants()
        service.operator.does("up")
        yield service


def tried(service: Service, habit: str) -> dict[str, Any]:
    """Rolls out a version of a habit, and says what came of it."""
    service.wants()
    service.operator.does("up")
    before, crowd = service.starts(), service.crowd()
    service.wants(habit)
    began_s = time.monotonic()
    trial = "20s" if habit == "good" else "3m"
    with crowd.asking(PEOPLE, TOKENS):
        time.sleep(10)
        done = service.operator.run("upgrade", "--trial", trial)
        seconds, meanwhile = time.monotonic() - began_s, crowd.whole
        while habit == "good" and crowd.whole < ANSWERS:
            time.sleep(1)
    after = service.starts()
    first, *others = before
    return {
        "exit": done.returncode,
        "said": done.stderr.strip().splitlines()[-6:] if habit != "good" else [],
        "seconds": round(seconds),
        "answers_meanwhile": meanwhile,
        "answers": crowd.whole,
        "failed": crowd.failed,
        "cut": crowd.cut,
        "is_back": after[first].split()[-1] == before[first].split()[-1],
        "others_untouched": all(after[name] == before[name] for name in others),
    }


def faults(habit: str, found: dict[str, Any]) -> list[str]:
    """What is not as it must be, in a sentence each."""
    lost = len(found["failed"]) - found["cut"]
    if habit == "good":
        well = found["exit"] == Exit.OK and not found["failed"] and not found["is_back"] and found["answers"] >= ANSWERS
        return [] if well else [f"a good version was not brought in unnoticed: {found}"]
    wrong = []
    if found["exit"] != Exit.RUN_FAILED or not found["is_back"]:
        wrong.append(f"{habit}: it is not back as it was")
    if not found["others_untouched"]:
        wrong.append(f"{habit}: other engines were touched")
    # Each engine has one slot. What an engine that ends has in hand is cut off.
    if habit in {"crashes", "wedged"} and not lost and found["cut"] <= 1:
        return wrong
    return [*wrong, f"{habit}: people have noticed: {found['failed']}"] if found["failed"] else wrong


def main() -> int:
    """Tries all habits, or those that are named. Returns 1 where one does not come to what it must."""
    signals.heed()
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("habits", nargs="*", default=HABITS, help="of " + ", ".join(HABITS))
    asked = parser.parse_args()
    result: dict[str, Any] = json.loads(KEPT.read_text()) if KEPT.exists() else {}
    wrong: list[str] = []
    with served() as service:
        for habit in asked.habits:
            found = tried(service, habit)
            saying.to_stderr(f"{habit}: {json.dumps(found, indent=1)}")
            wrong += faults(habit, found)
            result |= {"commit": commit(), habit: found}
            KEPT.write_text(json.dumps(dict(sorted(result.items())), indent=1) + "\n")
    saying.to_stderr("\n".join(wrong) or "all came to what they must")
    return 1 if wrong else 0


if __name__ == "__main__":
    with saying.errors():
        sys.exit(main())
