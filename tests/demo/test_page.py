"""The web page: its events through gradio's client, and the page itself in Chromium."""

import html
import os
import re
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
from asvr.commands.demo import model_names  # noqa: E402
from asvr.demo.examples import Example  # noqa: E402
from asvr.demo.page import Page, serve  # noqa: E402
from asvr.demo.session import Demo  # noqa: E402

HOST = "127.0.0.1"
QUESTION = "what is it?"
PLAIN = dict(reconstruction=[])  # without targets
EXAMPLES = [
    Example(image=gradient(), question="what is it?", answer="a gradient"),
    Example(image=gradient(9), question="b"),
]
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
    """The page of two tiny models: one with both kinds of targets, one without any."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(constants, "HF_HUB_DISABLE_TELEMETRY", True)  # the client's, in which the page has no part
        for owner, name in ((socket, "getaddrinfo"), (socket.socket, "connect")):
            patch.setattr(owner, name, noting(getattr(owner, name), asked_for))
        demos = [Demo(pretrained(), name="first", max_new_tokens=6)]
        demos.append(Demo(pretrained(**PLAIN), name="<b>second</b>", max_new_tokens=4))
        page = serve(demos, host=HOST, port=free_port(), examples=EXAMPLES)
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


PARTS = "file preview message question chat heads looks pixels chat_2 heads_2 looks_2".split()
ASKED = "question message chat looks chat_2 looks_2".split()


def show(own: Client, file: str) -> dict:
    return dict(zip(PARTS, own.predict(handle_file(file), api_name="/show"), strict=True))


def ask(own: Client, question: str) -> tuple[dict, list]:
    """What the page shows last, and all that it showed of the first model's answer."""
    job, last, told = own.submit(question, -1, -1, api_name="/ask"), {}, []
    job.result()
    for output in job.outputs():
        new = {name: value for name, value in zip(ASKED, output, strict=True) if not stays(value)}
        last |= new
        told += [texts(new["chat"])[-1:]] if "chat" in new else []
    return last, told


def stays(value) -> bool:
    return isinstance(value, dict) and value.get("__type__") == "update" and "value" not in value


def texts(chat: list[dict]) -> list[str]:
    return [part["text"] for message in chat for part in message["content"]]


def images(part: str) -> list[str]:
    """The texts that stand for the images of a part."""
    return [html.unescape(alt) for alt in re.findall(r'<img alt="([^"]*)"', part)]


def test_an_image_and_a_question(served, picture):
    own = client(served)
    shown = show(own, picture)
    assert len(images(shown["heads"])) == 8 and len(images(shown["pixels"])) == 3 and not images(shown["looks"])
    assert "right in" in images(shown["heads"])[0] and "probability of" in images(shown["heads"])[1]
    last, steps = ask(own, QUESTION)
    assert last["question"] == "" and not last["message"]["visible"]
    for model in ("", "_2"):
        assert texts(last[f"chat{model}"])[0] == QUESTION and len(texts(last[f"chat{model}"])) == 2
        assert "% of the attention is on the image" in images(last[f"looks{model}"])[1]
    assert texts(last["chat"]) != texts(last["chat_2"])
    assert len(steps) > 2 and len({str(step) for step in steps}) > 2  # word by word
    assert own.predict(0, api_name="/layer") != own.predict(1, api_name="/layer")
    assert own.predict(0, api_name="/layer_2") != own.predict(1, api_name="/layer_2")


def test_an_example_is_shown_and_asked(served):
    own = client(served)
    job = own.submit(-1, -1, api_name="/example_1")
    job.result()
    first, *_, last = [dict(zip(PARTS, output, strict=True)) for output in job.outputs()]
    assert "The right answer is: a gradient" in first["preview"] and images(first["heads"])
    chats = [dict(zip(PARTS, output, strict=True))["chat_2"] for output in job.outputs()]
    assert texts([chat for chat in chats if not stays(chat)][-1])[0] == "what is it?"
    assert not last["message"]["visible"]
    last, _ = ask(own, "and now?")  # the conversation about it goes on
    assert texts(last["chat"])[::2] == ["what is it?", "and now?"]


def test_a_second_model_answers_where_the_first_one_cannot(picture, monkeypatch):
    demos = [Demo(pretrained(), name=name, max_new_tokens=4) for name in ("a", "b")]
    page = Page(demos, [])
    sessions = page.show(gradient())[page.sessions]
    monkeypatch.setattr(type(demos[0]), "ask", asking_fails_for(demos[0]))
    last = {}
    for values in page.answer("what?", sessions, -1, -1):
        last |= values
    assert last[page.message].value and "a: too long" in last[page.message].value and last[page.message].visible
    assert last[page.sides[0].chat] == [] and len(last[page.sides[1].chat]) == 2
    assert last[page.question] == ""


def asking_fails_for(failing: Demo):
    ask = Demo.ask

    def own(self, session, question):
        if self is failing:
            raise ValueError("too long")
        return ask(self, session, question)

    return own


def test_sessions_do_not_mix(served, picture):
    first, second = client(served), client(served)
    show(first, picture)
    ask(first, "one?")
    last, _ = ask(second, "two?")
    assert texts(last["chat"])[0] == "two?" and not images(last["looks"])  # it has no image
    last, _ = ask(first, "three?")
    assert texts(last["chat"])[::2] == ["one?", "three?"] and images(last["looks"])
    assert dict(zip(PARTS, first.predict(api_name="/clear"), strict=True))["chat"] == []
    assert texts(ask(second, "four?")[0]["chat"])[::2] == ["two?", "four?"]


def test_what_is_wrong_is_told_and_the_page_goes_on(served, picture, tmp_path):
    own = client(served)
    for name, file in broken_files(tmp_path).items():
        shown = show(own, str(file))
        assert name in shown["message"]["value"] and shown["message"]["visible"] and not images(shown["heads"])
        assert "Traceback" not in shown["message"]["value"] and str(tmp_path) not in shown["message"]["value"]
    show(own, picture)
    for question, problem in (("", "write a question first"), ("word " * 200, "positions; shorten it")):
        last, _ = ask(own, question)
        assert problem in last["message"]["value"] and last["question"] == question and last["chat"] == []
    last, _ = ask(own, QUESTION)
    assert len(texts(last["chat"])) == 2 and not last["message"]["visible"]


def test_messages_are_text_and_no_html(served, tmp_path):
    (tmp_path / "<b>x.png").write_text("no image")
    assert "<b>" not in show(client(served), str(tmp_path / "<b>x.png"))["message"]["value"]
    words = str([part["props"].get("value") for part in served.config["components"]])
    assert "&lt;b&gt;second&lt;/b&gt;" in words and "<b>second" not in words


def test_the_page_is_for_this_machine_and_asks_nobody(served, asked_for):
    assert served.server_name == HOST and not served.share and not served.analytics_enabled
    policy = httpx.get(served.local_url).headers["content-security-policy"]
    assert policy.startswith("default-src 'self'") and "http" not in policy
    assert asked_for and set(asked_for) <= {HOST, "localhost"}


@pytest.fixture
def elsewhere(monkeypatch):
    """An image's URL on another server that gradio takes for a public one, and the requests that came there."""
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
    for name, inputs in (("show", ()), ("ask", (-1, -1)), ("layer", ()), ("example_1", (-1,))):
        file = handle_file(f"{url}/{name}.png")
        for given in (file, [dict(path="", inner=file)]):
            with pytest.raises(AppError, match="fetches nothing from elsewhere"):
                own.predict(given, *inputs, api_name=f"/{name}")
    assert httpx.get(f"{served.local_url}gradio_api/file={url}/route.png").status_code == 403
    assert requests == ["/counted"]
    assert images(show(own, picture)["heads"])


def test_a_port_that_is_taken_is_told(served):
    with pytest.raises(ValueError, match="give another --port"):
        serve([Demo(pretrained(), max_new_tokens=2)], host=HOST, port=served.server_port)


def test_a_model_without_targets_says_so():
    config = Page([Demo(pretrained(**PLAIN), name="plain", max_new_tokens=2)], []).blocks.get_config_file()
    words = [str(part["props"].get("value")) for part in config["components"]]
    assert any("plain was trained without a reconstruction target" in word for word in words)


def one_model(picture: str) -> tuple[Page, list]:
    page = Page([Demo(pretrained(), max_new_tokens=6)], [])
    return page, page.show_file(picture)[page.sessions]


def test_an_empty_answer_is_shown_and_what_it_looks_at_is_not(picture, monkeypatch):
    page, sessions = one_model(picture)
    list(page.answer("a", sessions, -1))
    monkeypatch.setattr(type(page.sides[0].demo.pretrained), "generate", lambda self, prompts, **kwargs: [""])
    last = {}
    for values in page.answer("b", sessions, -1):
        last |= values
    assert last[page.question] == "" and not last[page.message].visible and not images(last[page.sides[0].looks])
    assert [line["content"] for line in last[page.sides[0].chat][2:]] == ["b", "(no answer)"]


def test_an_llm_without_attention_weights_answers_and_says_so(picture, monkeypatch):
    page, sessions = one_model(picture)
    monkeypatch.setattr(type(sessions[0].talk), "attention", unable)
    last = {}
    for values in page.answer("a", sessions, -1):
        last |= values
    assert "0 of 2 layers" in last[page.message].value and last[page.question] == ""
    assert not images(last[page.sides[0].looks]) and len(last[page.sides[0].chat]) == 2


def test_codes_that_cannot_be_computed_are_told_and_the_image_is_shown(picture, monkeypatch):
    page, sessions = one_model(picture)
    monkeypatch.setattr(type(sessions[0].talk), "token_maps", unable)
    shown, (side,) = page.show_file(picture), page.sides
    assert images(shown[page.preview]) and not images(shown[side.heads]) and not images(shown[side.pixels[0]])
    assert "0 of 2 layers" in shown[page.message].value
    assert list(page.answer("a", shown[page.sessions], -1))


def unable(self):
    raise ValueError("0 of 2 layers")


@pytest.fixture
def opened(monkeypatch):
    """Runs tools/demo.py with these arguments; gives what it would serve."""
    served = []

    def run(*arguments: str) -> list:
        monkeypatch.setattr(sys, "argv", ["demo.py", *arguments])
        runpy.run_path(str(ROOT / "tools" / "demo.py"), run_name="__main__")
        return served

    monkeypatch.setattr(asvr, "load", lambda folder, **kwargs: pretrained())
    monkeypatch.setattr(page_module, "serve", lambda demos, **kwargs: served.append((demos, kwargs)) or Held())
    for name in ("GRADIO_ANALYTICS_ENABLED", "HF_HUB_DISABLE_TELEMETRY"):
        monkeypatch.setenv(name, "")  # so that what the tool sets is undone
    return run


@pytest.mark.parametrize("host", [None, "0.0.0.0"])
def test_the_tool_stays_on_this_machine_unless_told(host, opened, capsys):
    ((demos, given),) = opened("folder", "--port", "7", *(["--host", host] if host else []))
    assert given == dict(host=host or HOST, port=7, examples=[]) and [demo.name for demo in demos] == ["folder"]
    assert ("warning" in capsys.readouterr().out) == (host is not None)
    assert os.environ["GRADIO_ANALYTICS_ENABLED"] == "False"


def test_the_tool_compares_two_models_on_given_examples(opened, tmp_path):
    gradient().save(tmp_path / "a.png")
    ((demos, given),) = opened("runs/x", "--against", "other/x", "--examples", str(tmp_path))
    assert [demo.name for demo in demos] == ["runs/x", "other/x"]
    assert [example.question for example in given["examples"]] == ["What is in this image?"]


@pytest.mark.parametrize(
    "folders, stages, names",
    [
        (["a/run", "b/mini"], [None, None], ["run", "mini"]),
        (["a/run", "a/run"], ["blind", None], ["run (blind)", "run"]),
        (["a/run", "b/run"], [None, None], ["a/run", "b/run"]),
        (["a/run", "a/run"], [None, None], ["a/run [A]", "a/run [B]"]),
    ],
)
def test_models_have_names_that_differ(folders, stages, names):
    assert model_names(folders, stages) == names


class Held:
    local_url = "http://127.0.0.1:7/"

    def block_thread(self):
        pass


def test_without_gradio_the_page_says_what_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", None)
    monkeypatch.delitem(sys.modules, "asvr.demo.page")
    with pytest.raises(ValueError, match=r"pip install 'asvr\[demo\]'"):
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


@pytest.mark.parametrize("width", [1280, 390], ids=["desktop", "phone"])
def test_the_page_in_a_browser(served, browser, picture, tmp_path, width):
    bad, requests = broken_files(tmp_path), []
    browser.on("request", lambda request: requests.append(request.url))
    tab = browser.new_page()
    tab.set_viewport_size(dict(width=width, height=844))
    tab.goto(served.local_url)
    upload = tab.locator("#file input[type=file]")
    question, message, answers = tab.locator("#question textarea"), tab.locator("#message"), tab.locator("#chat .bot")

    def ask_and_see() -> None:
        before = answers.count()
        question.fill(QUESTION)
        tab.locator("#ask").click()
        for name in ("looks", "looks-2"):
            tab.locator(f"#{name} img").first.wait_for()
        assert answers.count() > before and answers.last.inner_text().strip()

    tab.locator("#example-1").click()
    tab.locator("#looks-2 img").first.wait_for()
    assert tab.locator("#image").get_by_text("The right answer is: a gradient").is_visible()
    upload.set_input_files(picture)
    tab.locator("#looks img").first.wait_for(state="detached")
    for name in ("image", "heads", "pixels-pixel"):
        tab.locator(f"#{name} img").first.wait_for()
    ask_and_see()
    check_layout(tab, width)
    for name in ("text.png", "truncated.jpg"):
        upload.set_input_files(str(bad[name]))
        message.get_by_text(name).wait_for()
        tab.locator("#heads img").first.wait_for(state="detached")
    upload.set_input_files(picture)
    tab.locator("#heads img").first.wait_for()
    assert not message.is_visible()
    hosts = {urlsplit(url).hostname for url in requests if urlsplit(url).scheme not in ("data", "blob")}
    assert hosts == {HOST}


def check_layout(tab, width: int) -> None:
    """Nothing is wider than the screen, models stand side by side where there is room, images have words, and the link
    leads to the explanation."""
    assert tab.evaluate("document.documentElement.scrollWidth") <= width
    first, second = (tab.locator(f"#{name}").bounding_box() for name in ("chat", "chat-2"))
    beside, below = first["x"] + first["width"] <= second["x"], first["y"] + first["height"] <= second["y"]
    assert (beside, below) == ((True, False) if width == 1280 else (False, True))
    shown = [image for image in tab.locator("figure img").all() if image.is_visible()]
    assert len(shown) > 10 and all(image.get_attribute("alt") for image in shown)
    assert all(image.bounding_box()["width"] >= 110 for image in shown)
    tab.get_by_role("link", name="how to read the maps").first.click()
    tab.wait_for_function("document.getElementById('how-to-read').getBoundingClientRect().top < innerHeight")
