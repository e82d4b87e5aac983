"""Asks the balancer on its host, in one of the ways below. Ends with a traceback where it is not as it should be."""

import csv
import http.client
import json
import socket
import sys
import threading
import time
from pathlib import Path

ANN, BOB, PAGE = "the-key-of-ann", "the-key-of-bob", "the-key-of-the-site"
FIGURES = "/run/r1prov/balancer/master.sock"
SLOTS = 2


def connection():
    return http.client.HTTPConnection("127.0.0.1", 8010, timeout=300)


def right(key):
    return {"Authorization": f"Bearer {key}"}


def question(tokens):
    story = [{"role": "user", "content": "Tell a long story."}]
    return json.dumps({"messages": story, "stream": True, "max_tokens": tokens, "ignore_eos": True})


def asked(key, tokens, **named):
    """A connection on which a question was sent. Headers are named with _ for -."""
    opened = connection()
    headers = right(key) | {name.replace("_", "-"): value for name, value in named.items()}
    opened.request("POST", "/v1/chat/completions", question(tokens), headers)
    return opened


def answer_counts():
    """Engine -> how many questions it has had."""
    rows = csv.DictReader(figures("show stat engines 4 -1").removeprefix("# ").strip().splitlines())
    return {row["svname"]: int(row["stot"]) for row in rows}


def status_of(headers, path="/v1/models"):
    opened = connection()
    opened.putrequest("GET", path)
    for name, value in headers:
        opened.putheader(name, value)
    opened.endheaders()
    answer = opened.getresponse()
    return answer.status, answer.getheader("Retry-After"), answer.read().decode()


def figures(command):
    with socket.socket(socket.AF_UNIX) as door:
        door.connect(FIGURES)
        door.sendall(f"@1 {command}\n".encode())
        door.shutdown(socket.SHUT_WR)
        return b"".join(iter(lambda: door.recv(65536), b"")).decode()


def keys():
    for key in (ANN, BOB):
        status, _, text = status_of(right(key).items())
        assert (status, json.loads(text)["data"][0]["id"]) == (200, "demo"), text
    inner = "a-key-that-must-stay-secret"  # It is the engine's, and nobody else's.
    right_pair = ("Authorization", f"Bearer {ANN}")
    for headers in (
        [],
        [("Authorization", ANN)],
        [("Authorization", f"bearer {ANN}")],
        [("Authorization", f"Bearer  {ANN}")],
        [("Authorization", f"Bearer {ANN}x")],
        [("Authorization", f"Bearer {ANN} x")],
        [("Authorization", f"Bearer {inner}")],
        [("Authorization", "Bearer ")],
        [("X-Api-Key", ANN)],
        [("Authorization", "Bearer x"), right_pair],
        [right_pair, ("Authorization", "Bearer x")],
    ):
        status, _, text = status_of(headers)
        assert (status, json.loads(text)["error"]["code"]) == (401, 401), (headers, status, text)


def lone():
    """A request with the only key that is left: the other one is refused, and keeps what flows."""
    assert status_of(right(ANN).items())[0] == 200
    assert status_of(right(BOB).items())[0] == 401


def turns():
    """A crowd has one key, and calls itself many people. So has a person of the page, for whom the page speaks."""
    crowd(ANN, (BOB, "bob"), lambda number: f"person-{number}")
    crowd(PAGE, (PAGE, "another"), lambda _: "one")


def crowd(key, other, person):
    """Many questions at once: all are answered, those of the crowd in their turn, and one of somebody else goes before most of them."""
    began = []

    def ask(key, person, number):
        answer = asked(key, 12, X_User_Id=person).getresponse()
        answer.readline()
        began.append(number)
        assert answer.read().rstrip().endswith(b"[DONE]")

    order = [(key, person(number), number) for number in range(16)] + [(*other, "other")]
    threads = [threading.Thread(target=ask, args=each) for each in order]
    for thread in threads:
        thread.start()
        time.sleep(0.03)
    for thread in threads:
        thread.join()
    assert len(began) == len(order), began
    assert began.index("other") <= 2 * SLOTS + 2, began
    began.remove("other")
    assert all(abs(number - place) <= 5 for place, number in enumerate(began)), began


def kept():
    """A conversation keeps its engine while that has room, and waits for none. What has no name goes to all engines."""

    def went(times, **named):
        before = answer_counts()
        for _ in range(times):
            assert asked(ANN, 1, **named).getresponse().read().rstrip().endswith(b"[DONE]")
        return sorted(count - before[engine] for engine, count in answer_counts().items())

    assert went(6) == [3, 3]
    for conversation in ("of-ann", "another", "a-third"):
        assert went(6, X_Conversation_Id=conversation) == [0, 6]
    before = answer_counts()
    held = [asked(ANN, 3000, X_Conversation_Id="of-ann") for _ in range(SLOTS)]
    for each in held:
        assert each.getresponse().readline(), "it waits for its engine while another one has room"
    assert {engine: count - before[engine] for engine, count in answer_counts().items()} == {"one": 1, "two": 1}
    for each in held:
        each.close()


def holds(tells):
    """An answer that comes whole, however long it takes. The file is told which engine gives it."""
    before = answer_counts()
    answer = asked(ANN, 600, X_Conversation_Id="drains").getresponse()
    answer.readline()
    (engine,) = [name for name, count in answer_counts().items() if count > before[name]]
    Path(tells).write_text(engine)
    assert answer.read().rstrip().endswith(b"[DONE]"), "the answer was cut off"


def avoids(engine):
    """No question goes to the engine, not even of the conversation that it has answered last."""
    before = answer_counts()
    for named in ({"X_Conversation_Id": "drains"}, {}):
        for _ in range(3):
            assert asked(ANN, 1, **named).getresponse().read().rstrip().endswith(b"[DONE]")
    after = answer_counts()
    assert (after[engine], sum(after.values())) == (before[engine], sum(before.values()) + 6), after


def leaves():
    """Two answers take both slots, and a third question waits. When one of the two leaves, the third begins long before the other ends."""
    first, second = asked(ANN, 2000), asked(ANN, 2000)
    answers = [each.getresponse() for each in (first, second)]
    third = asked(ANN, 4)
    waiting = asked(ANN, 4)
    until = time.monotonic() + 30
    while (
        ",2," not in next(line for line in figures("show stat").splitlines() if line.startswith("engines,BACKEND"))[:24]
    ):
        assert time.monotonic() < until, figures("show stat")
        time.sleep(0.1)
    waiting.close()  # A client that leaves while it waits is waited for by nobody.
    answers[0].close()
    first.close()
    assert third.getresponse().read().rstrip().endswith(b"[DONE]")
    assert not answers[1].isclosed()
    answers[1].close()
    second.close()


def impatient():
    """Two answers take both slots for longer than a third question may wait."""
    held = [asked(ANN, 3000) for _ in range(SLOTS)]
    answers = [each.getresponse() for each in held]
    answer = asked(BOB, 1).getresponse()
    assert (answer.status, answer.getheader("Retry-After")) == (503, "30"), answer.status
    assert json.loads(answer.read())["error"]["code"] == 503
    for each in (*answers, *held):
        each.close()


def flows(tells, told):
    """An answer that flows when the one file is made, and still does when the other one is there."""
    answer = asked(BOB, 3000).getresponse()
    answer.readline()
    Path(tells).touch()
    while not Path(told).exists():
        assert answer.readline(), "the answer was cut off"
    for _ in range(20):
        assert answer.readline(), "the answer was cut off"


def down():
    status, again, text = status_of(right(ANN).items())
    assert (status, again, json.loads(text)["error"]["code"]) == (503, "30", 503), (status, text)
    assert status_of([])[0] == 401  # A stranger is told nothing.


def counted(at_least):
    """How many questions ann has asked since the balancer was started."""
    line = next(line for line in figures("show table keys").splitlines() if "key=ann " in line)
    count = int(line.split("http_req_cnt=")[1].split()[0])
    assert count >= int(at_least), line


globals()[sys.argv[1]](*sys.argv[2:])
