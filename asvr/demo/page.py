"""The web page around a `Demo`: its parts, its events, and a server that asks nobody."""

import html
from collections.abc import Iterator

try:
    import gradio as gr
except ModuleNotFoundError as error:
    raise ValueError("the page needs gradio: pip install -e '.[demo]'") from error
from gradio_client.utils import is_file_obj_with_meta, is_http_url_like, traverse
from PIL import ImageOps
from starlette.middleware import Middleware
from starlette.responses import PlainTextResponse

from asvr.data.templates import IMAGE_MARK
from asvr.demo.session import Demo, Session

MAX_FILE = "100mb"
PREVIEW = (640, 640)
MEAN = -1  # the layer that stands for all
NO_ANSWER = "(no answer)"
HINT = "A picture is not needed: a question can stand alone. A new picture begins a new conversation."
HEADS = (
    "#### What the visual head predicts\nEach code is predicted given the true picture in front of it and the "
    "true codes of the depths before, as in training. How sure: the probability of the predicted code."
)
NO_HEADS = "#### What the visual head predicts\nThis model has no reconstruction target: there are no codes to show."
LOOKS = (
    "#### What the answer looks at\nThe LLM's attention from the positions that write the answer, averaged over its "
    "tokens and over heads. What is not on the picture is on the text."
)
PIXELS = (
    "#### What the codes of the target {name} stand for\nThe predicted codes are those of above, each given the true "
    "picture in front of it (teacher forcing): the model does not draw freely."
)
CSS = ".asvr-message { background: #fde8e8; color: #8a1c1c; padding: 8px 12px; border-radius: 6px }"
# The page takes scripts, styles, fonts and pictures from its own server alone, whatever gradio's front end asks for,
# and whatever a link in an answer points to.
POLICY = "default-src 'self' data: blob: 'unsafe-inline' 'unsafe-eval'"


class UploadsAlone(gr.Blocks):
    """A page whose server fetches nothing for whoever asks it: gradio downloads a file that is given by its URL, to
    whatever input."""

    def validate_inputs(self, block_fn, inputs: list) -> None:  # gradio calls it before it touches them
        traverse(inputs, _refuse_url, is_file_obj_with_meta)
        super().validate_inputs(block_fn, inputs)


def _refuse_url(file: dict) -> None:
    if is_http_url_like(file["path"]):
        raise gr.Error("upload the picture: this page fetches nothing from elsewhere")


def build_page(demo: Demo) -> gr.Blocks:
    with UploadsAlone(title="asvr", analytics_enabled=False, fill_width=True, delete_cache=(3600, 3600)) as page:
        gr.Markdown(f"## Look at a model\n{describe(demo.pretrained.model)}")
        session = gr.State()
        with gr.Row():
            with gr.Column(scale=2, min_width=360):
                file = gr.File(label="picture", height=135, type="filepath", elem_id="file")
                picture = _figure("picture", height=230, buttons=[])
                message = gr.HTML(visible=False, elem_id="message")
                chat = gr.Chatbot(label="conversation", height=260, render_markdown=False, buttons=[], elem_id="chat")
                question = gr.Textbox(label="question", info=HINT, lines=1, max_lines=4, elem_id="question")
                with gr.Row():
                    ask = gr.Button("Ask", variant="primary", elem_id="ask")
                    clear = gr.Button("New conversation", elem_id="clear")
            with gr.Column(scale=3, min_width=480):
                gr.Markdown(HEADS if demo.pretrained.model.targets else NO_HEADS)
                heads = _figure("heads", visible=bool(demo.pretrained.model.targets))
                gr.Markdown(LOOKS)
                with gr.Row():
                    looks = _figure("looks", scale=4)
                    names = [("all", MEAN)]
                    names += [(str(i + 1), i) for i in range(demo.pretrained.model.llm.num_layers)]
                    layer = gr.Dropdown(names, value=MEAN, label="LLM layer", elem_id="layer", min_width=120)
                pixels = []
                for target in demo.pretrained.model.targets:
                    if target.decodes:
                        gr.Markdown(PIXELS.format(name=target.name))
                        pixels.append(_figure(f"pixels-{target.name}"))
        shown = [session, file, picture, message, chat, heads, looks, *pixels]

        def show(path: str | None) -> list:
            return _show(demo, path, len(pixels))

        def answer(text: str, own: Session | None, chosen: int) -> Iterator[list]:
            yield from _answer(demo, text, own, chosen)

        def redraw(own: Session | None, chosen: int):
            return demo.attention_picture(own, chosen) if own is not None and own.attention is not None else None

        # One event at a time, whatever its kind and its tab: they share the model.
        model = dict(concurrency_limit=1, concurrency_id="model")
        file.upload(show, [file], shown, api_name="show", **model)
        clear.click(lambda: show(None), None, shown, api_name="clear", **model)
        asked = [session, question, message, chat, looks]
        gr.on([ask.click, question.submit], answer, [question, session, layer], asked, api_name="ask", **model)
        layer.input(redraw, [session, layer], [looks], api_name="layer", **model)
    return page


def describe(model) -> str:
    """One line: encoder, LLM, targets."""
    image, (rows, columns) = model.layout.largest(), model.encoder.grid
    tokens = f"{rows} x {columns}" if model.layout.fixed else f"up to {image.num_tokens}"
    targets = [f"{target.name} ({target.describe()})" for target in model.targets]
    parts = [
        f"{tokens} visual tokens of {type(model.encoder).__name__}",
        f"{model.llm.num_layers} LLM layers of width {model.llm.hidden_size}",
        f"targets: {', '.join(targets) or 'none'}",
        f"on {model.device}",
    ]
    return " · ".join(parts)


def serve(demo: Demo, *, host: str, port: int) -> gr.Blocks:
    """Serve the page from a thread, at ``local_url`` of what is returned, until its ``close()``. Raises ``ValueError``
    where the port cannot be had."""
    page = build_page(demo).queue(api_open=False)  # what does not queue up would not wait for the model
    theme = gr.themes.Default(font="system-ui", font_mono="monospace")
    try:
        page.launch(
            server_name=host,
            server_port=port,
            share=False,
            ssr_mode=False,
            pwa=False,
            mcp_server=False,
            run_history=False,
            enable_monitoring=False,
            footer_links=[],
            max_file_size=MAX_FILE,
            theme=theme,
            css=CSS,
            app_kwargs=dict(middleware=[Middleware(OwnServerAlone)]),
            prevent_thread_lock=True,
            quiet=True,
        )
    except OSError as error:
        raise ValueError(f"{host}:{port} cannot be served ({error}): give another --port") from error
    return page


class OwnServerAlone:
    """Tells the browser to ask nobody else for anything, and does not fetch URLs for it, as gradio's route for files
    would."""

    def __init__(self, app):
        self.app = app

    async def __call__(self, scope, receive, send) -> None:
        async def send_with_policy(message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], (b"content-security-policy", POLICY.encode())]
            await send(message)

        refused = any(f"file={scheme}://" in scope.get("path", "") for scheme in ("http", "https"))
        app = PlainTextResponse("this server fetches nothing", 403) if refused else self.app
        await app(scope, receive, send_with_policy)


def _figure(name: str, **kwargs) -> gr.Image:
    own = dict(show_label=False, interactive=False, format="png", buttons=["fullscreen"], elem_id=name)
    return gr.Image(**(own | kwargs))


def _message(text: str | None):
    """A line that stays until the next event."""
    return gr.HTML(f'<div role="alert" class="asvr-message">{html.escape(text or "")}</div>', visible=bool(text))


def _show(demo: Demo, path: str | None, num_pixels: int) -> list:
    """What becomes of the page with a picture's file: a new conversation in any case, without a picture where there is
    none or where it cannot be read. The place to drop a file is empty again, so that it takes another."""
    session, preview, problem = demo.session(), None, None
    heads, pixels = None, [None] * num_pixels
    try:
        if path is not None:
            preview = ImageOps.contain(demo.show(session, path), PREVIEW)
            heads, pixels = demo.target_pictures(session)
    except ValueError as error:
        problem = str(error)
    return [session, None, preview, _message(problem), [], heads, None, *pixels]


def _answer(demo: Demo, question: str, session: Session | None, layer: int) -> Iterator[list]:
    """The page's session, question, message, conversation and attention, with every piece of the answer."""
    session = session or demo.session()
    before, text = _history(session), ""
    asked = [*before, dict(role="user", content=question.strip())]
    try:
        for piece in demo.ask(session, question):
            text += piece
            yield [session, "", _message(None), [*asked, dict(role="assistant", content=text)], None]
    except ValueError as error:
        yield [session, question, _message(str(error)), before, None]
        return
    history = _history(session)
    if history == before:  # an empty answer is not remembered
        yield [session, "", _message(None), [*asked, dict(role="assistant", content=NO_ANSWER)], None]
        return
    looks, problem = None, None
    try:
        looks = demo.attention_picture(session, layer)
    except ValueError as error:
        problem = str(error)
    yield [session, "", _message(problem), history, looks]


def _history(session: Session) -> list[dict]:
    roles = dict(human="user", gpt="assistant")
    return [
        dict(role=roles[message["from"]], content=message["value"].replace(f"{IMAGE_MARK}\n", ""))
        for message in session.talk.messages
    ]
