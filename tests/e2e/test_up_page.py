"""The chat page in a real browser, as a person uses it."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from playwright.sync_api import Page as Tab
from playwright.sync_api import expect, sync_playwright

from r1prov.common import paths
from r1prov.lab.hosts import LabHost

from .people import QUESTION, Operator

CHROMIUM = shutil.which("chromium")
pytestmark = [
    pytest.mark.host,
    pytest.mark.skipif(not CHROMIUM, reason="there is no browser: apt-get install chromium"),
]
# Nothing of the browser's own is to be fetched here, and root has no sandbox.
QUIET = ("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync")
QUIET += ("--disable-background-networking", "--disable-component-update")
DOCUMENT = """The handbook of the data centre. The server room on the third floor is cooled by two units, Anna and Bert.
The emergency door code of the server room is the word marzipan. The caretaker changes it every spring.
Deliveries are accepted at the north gate between eight and ten in the morning. The canteen closes at three.
"""


@pytest.fixture
def tab(operator: Operator, pair: list[LabHost]) -> Iterator[Tab]:
    """A browser's tab, at the page's first screen."""
    with operator.opens(pair[0]) as doors, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=QUIET)
        tab = browser.new_page(viewport={"width": 1200, "height": 800}, locale="en-US")
        tab.set_default_timeout(120_000)
        expect.set_options(timeout=120_000)
        tab.goto(doors["page"], wait_until="domcontentloaded")
        yield tab
        browser.close()


def shot(tab: Tab, name: str) -> None:
    """A picture for people to look at."""
    tab.screenshot(path=paths.cache_dir() / "logs" / f"page-{name}.png")


def log_in(tab: Tab, operator: Operator) -> None:
    tab.fill("input[type=email], #email", "admin@example.com")
    tab.fill("input[type=password]", operator.secret("webui-admin-password"))
    tab.click("button[type=submit]")
    tab.wait_for_selector("#chat-input")


def say(tab: Tab, text: str) -> None:
    tab.click("#chat-input")
    tab.keyboard.type(text)
    tab.keyboard.press("Enter")


def wait_until_indexed(tab: Tab, file: str) -> None:
    """The page itself shows no sign of it that could be waited for."""
    address = f"{tab.url.split('/', 3)[0]}//{tab.url.split('/', 3)[2]}/api/v1/files/{file}/process/status"
    headers = {"Authorization": f"Bearer {tab.evaluate('localStorage.token')}"}
    for _ in range(240):
        if tab.request.get(address, headers=headers).json()["status"] == "completed":
            return
        tab.wait_for_timeout(500)
    raise AssertionError("the document was not indexed within two minutes")


def test_a_visitor_finds_no_way_to_make_an_account(tab: Tab) -> None:
    expect(tab.get_by_role("button", name="Sign in")).to_be_visible()
    shot(tab, "login")
    assert "sign up" not in tab.inner_text("body").lower()
    assert "create" not in tab.inner_text("body").lower()


def test_nothing_lies_over_the_page(tab: Tab, operator: Operator) -> None:
    """Neither at the first login, nor when the page is opened again."""
    log_in(tab, operator)
    for _ in range(2):
        tab.wait_for_timeout(2000)  # A dialog that comes would come by then.
        assert tab.get_by_role("dialog").count() == 0
        tab.click("#chat-input", timeout=5000)
        tab.reload(wait_until="domcontentloaded")
        tab.wait_for_selector("#chat-input")
    shot(tab, "first")


def test_the_administrator_asks_and_reads_the_answer(tab: Tab, operator: Operator) -> None:
    log_in(tab, operator)
    say(tab, QUESTION)
    expect(tab.get_by_text("Paris").first).to_be_visible()
    shot(tab, "answer")


def test_a_passage_of_a_document_is_found_and_cited(tab: Tab, operator: Operator, tmp_path: Path) -> None:
    log_in(tab, operator)
    handbook = tmp_path / "handbook.txt"
    handbook.write_text(DOCUMENT)
    with tab.expect_response(
        lambda response: "/api/v1/files/" in response.url and response.request.method == "POST"
    ) as sent:
        tab.set_input_files("input[type=file]", handbook)
    wait_until_indexed(tab, sent.value.json()["id"])
    say(tab, "What is the emergency door code of the server room?")
    expect(tab.get_by_text("1 Source", exact=True)).to_be_visible()
    tab.get_by_text("1 Source", exact=True).click()
    # The passage itself, not what a small model makes of it.
    tab.get_by_text("handbook.txt").last.click()
    expect(tab.get_by_text("the word marzipan")).to_be_visible()
    shot(tab, "document")


BRINGS_A_PICTURE = """address => new Promise(done => {
    document.addEventListener("securitypolicyviolation", event => done(event.blockedURI));
    const picture = new Image();
    picture.onload = picture.onerror = () => setTimeout(() => done("nothing was refused"), 1000);
    picture.src = address;
    document.body.append(picture);
})"""


def test_a_picture_carries_nothing_away(tab: Tab, operator: Operator) -> None:
    """Whatever an answer brings into the page, the browser asks nobody else for it."""
    log_in(tab, operator)
    asked: list[str] = []

    class Listener(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_error(404)

    with ThreadingHTTPServer(("127.0.0.1", 0), Listener) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        elsewhere = f"http://127.0.0.1:{server.server_port}"
        refused = tab.evaluate(BRINGS_A_PICTURE, f"{elsewhere}/secret-of-the-chat.png")
        assert refused.startswith(elsewhere)
        assert not asked
        # A request that the policy does not concern arrives, so the listener would have heard the other one.
        tab.request.get(f"{elsewhere}/heard")
        assert asked == ["/heard"]
        server.shutdown()
