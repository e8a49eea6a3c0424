"""The web page: its events through gradio's client, and the page itself in Chromium."""

import os
import runpy
import shutil
import socket
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

import pytest
from demo_helpers import broken_files, gradient, pretrained
from run_helpers import ROOT

gradio = pytest.importorskip("gradio", reason="gradio is not installed (pip install -e '.[demo]')")
import httpx  # noqa: E402
import safehttpx  # noqa: E402
from gradio_client import Client, handle_file  # noqa: E402
from gradio_client.exceptions import AppError  # noqa: E402
from huggingface_hub import constants  # noqa: E402

import asvr  # noqa: E402
import asvr.demo.page as page_module  # noqa: E402
from asvr.demo.page import _answer, _show, build_page, serve  # noqa: E402
from asvr.demo.session import Demo  # noqa: E402

HOST = "127.0.0.1"
QUESTION = "what is it?"
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = (
    "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync"
)


def free_port() -> int:
    with socket.socket() as own:
        own.bind((HOST, 0))
        return own.getsockname()[1]


@pytest.fixture(scope="module")
def asked_for() -> list:
    """Whom this process looks up or connects to."""
    return []


@pytest.fixture(scope="module")
def served(asked_for):
    """The page of a tiny model with both kinds of targets."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(constants, "HF_HUB_DISABLE_TELEMETRY", True)  # the client's, in which the page has no part
        for owner, name in ((socket, "getaddrinfo"), (socket.socket, "connect")):
            patch.setattr(owner, name, noting(getattr(owner, name), asked_for))
        page = serve(Demo(pretrained(), max_new_tokens=6), host=HOST, port=free_port())
        yield page
        page.close(verbose=False)


def noting(function, found: list):
    """``function``, which tells ``found`` what host it is called for."""

    def noted(*args, **kwargs):
        host = args[1][0] if isinstance(args[0], socket.socket) else args[0]
        found.append(str(host))
        return function(*args, **kwargs)

    return noted


@pytest.fixture
def picture(tmp_path) -> str:
    gradient().save(tmp_path / "picture.png")
    return str(tmp_path / "picture.png")


def client(page) -> Client:
    return Client(page.local_url, verbose=False, analytics_enabled=False)


def show(own: Client, file: str) -> dict:
    names = ("file", "picture", "message", "chat", "heads", "looks", "pixels")
    return dict(zip(names, own.predict(handle_file(file), api_name="/show"), strict=True))


def ask(own: Client, question: str) -> tuple[dict, list]:
    """What the page shows last, and all that it showed of the answer."""
    job = own.submit(question, -1, api_name="/ask")
    last = dict(zip(("question", "message", "chat", "looks"), job.result(), strict=True))
    return last, [texts(output[2])[-1:] for output in job.outputs()]


def texts(chat: list[dict]) -> list[str]:
    return [part["text"] for message in chat for part in message["content"]]


def test_a_picture_and_a_question(served, picture):
    own = client(served)
    shown = show(own, picture)
    assert all(shown[name] for name in ("picture", "heads", "pixels")) and not shown["looks"]
    last, steps = ask(own, QUESTION)
    assert last["question"] == "" and last["looks"] and not last["message"]["visible"]
    assert texts(last["chat"])[0] == QUESTION and len(texts(last["chat"])) == 2
    assert len(steps) > 2 and len({str(step) for step in steps}) > 2  # word by word
    assert own.predict(0, api_name="/layer") != own.predict(1, api_name="/layer")


def test_sessions_do_not_mix(served, picture):
    first, second = client(served), client(served)
    show(first, picture)
    ask(first, "one?")
    last, _ = ask(second, "two?")
    assert texts(last["chat"])[0] == "two?" and last["looks"] is None  # it has no picture
    last, _ = ask(first, "three?")
    assert texts(last["chat"])[::2] == ["one?", "three?"] and last["looks"]
    assert first.predict(api_name="/clear")[3] == []
    assert texts(ask(second, "four?")[0]["chat"])[::2] == ["two?", "four?"]


def test_what_is_wrong_is_told_and_the_page_goes_on(served, picture, tmp_path):
    own = client(served)
    for name, file in broken_files(tmp_path).items():
        shown = show(own, str(file))
        assert name in shown["message"]["value"] and shown["message"]["visible"] and not shown["heads"]
        assert "Traceback" not in shown["message"]["value"] and str(tmp_path) not in shown["message"]["value"]
    show(own, picture)
    for question, problem in (("", "write a question first"), ("word " * 200, "positions; shorten it")):
        last, _ = ask(own, question)
        assert problem in last["message"]["value"] and last["question"] == question and last["chat"] == []
    last, _ = ask(own, QUESTION)
    assert len(texts(last["chat"])) == 2 and not last["message"]["visible"]


def test_messages_are_text_and_no_html(served, tmp_path):
    (tmp_path / "<b>x.png").write_text("no picture")
    assert "<b>" not in show(client(served), str(tmp_path / "<b>x.png"))["message"]["value"]


def test_the_page_is_for_this_machine_and_asks_nobody(served, asked_for):
    assert served.server_name == HOST and not served.share and not served.analytics_enabled
    policy = httpx.get(served.local_url).headers["content-security-policy"]
    assert policy.startswith("default-src 'self'") and "http" not in policy
    assert asked_for and set(asked_for) <= {HOST, "localhost"}


@pytest.fixture
def elsewhere(monkeypatch):
    """A picture's URL on another server that gradio takes for a public one, and the requests that came there."""
    requests = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            requests.append(self.path)
            self.send_response(200)
            self.send_header("Content-Type", "image/png")
            self.end_headers()
            gradient().save(self.wfile, "PNG")

        def log_message(self, *args):
            pass

    async def is_public(host):
        return HOST

    monkeypatch.setattr(safehttpx, "async_validate_url", is_public)
    with ThreadingHTTPServer((HOST, 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://{HOST}:{server.server_port}", requests
        server.shutdown()
        thread.join()


def test_the_server_fetches_nothing_for_whoever_asks(served, elsewhere, picture):
    (url, requests), own = elsewhere, client(served)
    assert httpx.get(f"{url}/counted").status_code == 200 and requests == ["/counted"]
    for name, inputs in (("show", ()), ("ask", (-1,)), ("layer", ())):
        file = handle_file(f"{url}/{name}.png")
        for given in (file, [dict(path="", inner=file)]):
            with pytest.raises(AppError, match="fetches nothing from elsewhere"):
                own.predict(given, *inputs, api_name=f"/{name}")
    assert httpx.get(f"{served.local_url}gradio_api/file={url}/route.png").status_code == 403
    assert requests == ["/counted"]
    assert show(own, picture)["heads"]


def test_a_port_that_is_taken_is_told(served):
    with pytest.raises(ValueError, match="give another --port"):
        serve(Demo(pretrained(), max_new_tokens=2), host=HOST, port=served.server_port)


def test_a_model_without_targets_says_so():
    config = build_page(Demo(pretrained(reconstruction=[]), max_new_tokens=2)).get_config_file()
    words = [part["props"].get("value") for part in config["components"]]
    assert any("has no reconstruction target" in str(word) for word in words)


def test_an_empty_answer_is_shown_and_what_it_looks_at_is_not(picture, monkeypatch):
    demo = Demo(pretrained(), max_new_tokens=6)
    session = demo.session()
    demo.show(session, picture)
    list(demo.ask(session, "a"))
    monkeypatch.setattr(type(demo.pretrained), "generate", lambda self, prompts, **kwargs: [""])
    *_, (_, question, message, chat, looks) = _answer(demo, "b", session, -1)
    assert question == "" and not message.visible and looks is None
    assert [line["content"] for line in chat[2:]] == ["b", "(no answer)"]


def test_an_llm_without_attention_weights_answers_and_says_so(picture, monkeypatch):
    demo = Demo(pretrained(), max_new_tokens=6)
    session = demo.session()
    demo.show(session, picture)
    monkeypatch.setattr(type(session.talk), "attention", unable)
    *_, (_, _, message, chat, looks) = _answer(demo, "a", session, -1)
    assert "0 of 2 layers" in message.value and looks is None and len(chat) == 2


def test_codes_that_cannot_be_computed_are_told_and_the_picture_is_shown(picture, monkeypatch):
    demo = Demo(pretrained(), max_new_tokens=6)
    monkeypatch.setattr(type(demo.session().talk), "token_maps", unable)
    session, _, preview, message, _, heads, _, pixels = _show(demo, picture, 1)
    assert preview is not None and heads is pixels is None and "0 of 2 layers" in message.value
    assert list(demo.ask(session, "a"))


def unable(self):
    raise ValueError("0 of 2 layers")


@pytest.mark.parametrize("host", [None, "0.0.0.0"])
def test_the_tool_stays_on_this_machine_unless_told(host, monkeypatch, capsys):
    served = []
    monkeypatch.setattr(asvr, "load", lambda folder, **kwargs: pretrained())
    monkeypatch.setattr(page_module, "serve", lambda demo, **kwargs: served.append(kwargs) or Held())
    monkeypatch.setattr(sys, "argv", ["demo.py", "folder", "--port", "7", *(["--host", host] if host else [])])
    for name in ("GRADIO_ANALYTICS_ENABLED", "HF_HUB_DISABLE_TELEMETRY"):
        monkeypatch.setenv(name, "")  # so that what the tool sets is undone
    runpy.run_path(str(ROOT / "tools" / "demo.py"), run_name="__main__")
    assert served == [dict(host=host or HOST, port=7)]
    assert ("warning" in capsys.readouterr().out) == (host is not None)
    assert os.environ["GRADIO_ANALYTICS_ENABLED"] == "False"


class Held:
    local_url = "http://127.0.0.1:7/"

    def block_thread(self):
        pass


def test_without_gradio_the_page_says_what_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", None)
    monkeypatch.delitem(sys.modules, "asvr.demo.page")
    with pytest.raises(ValueError, match=r"pip install -e '\.\[demo\]'"):
        import asvr.demo.page  # noqa: F401


@pytest.fixture
def browser(tmp_path):
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if CHROMIUM is None:
        pytest.skip("there is no chromium")
    with playwright.sync_playwright() as started:
        context = started.chromium.launch_persistent_context(
            tmp_path / "profile", executable_path=CHROMIUM, headless=True, args=FLAGS.split()
        )
        yield context
        context.close()


def test_the_page_in_a_browser(served, browser, picture, tmp_path):
    bad, requests = broken_files(tmp_path), []
    browser.on("request", lambda request: requests.append(request.url))
    tab = browser.new_page()
    tab.goto(served.local_url)
    upload = tab.locator("#file input[type=file]")
    question, message, answers = tab.locator("#question textarea"), tab.locator("#message"), tab.locator("#chat .bot")

    def ask_and_see() -> None:
        before = answers.count()
        question.fill(QUESTION)
        tab.locator("#ask").click()
        tab.locator("#looks img").wait_for()
        assert answers.count() > before and answers.last.inner_text().strip()

    upload.set_input_files(picture)
    for name in ("picture", "heads", "pixels-pixel"):
        tab.locator(f"#{name} img").wait_for()
    ask_and_see()
    for name in ("text.png", "truncated.jpg"):
        upload.set_input_files(str(bad[name]))
        message.get_by_text(name).wait_for()
        tab.locator("#heads img").wait_for(state="detached")
    upload.set_input_files(picture)
    tab.locator("#heads img").wait_for()
    assert not message.is_visible()
    ask_and_see()
    hosts = {urlsplit(url).hostname for url in requests if urlsplit(url).scheme not in ("data", "blob")}
    assert hosts == {HOST}
