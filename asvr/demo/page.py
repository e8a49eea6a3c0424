"""The web page around one `Demo` or several: its parts and its events."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

try:
    import gradio as gr
except ModuleNotFoundError as error:
    raise ValueError("the page needs gradio: pip install 'asvr[demo]'") from error
from PIL import Image, ImageOps
from starlette.middleware import Middleware

from asvr.data.templates import IMAGE_MARK
from asvr.demo import markup
from asvr.demo.examples import Example
from asvr.demo.server import OwnServerAlone, UploadsAlone
from asvr.demo.session import Demo, Session, read_upload

MAX_FILE = "100mb"
PREVIEW, ICON = (480, 480), (112, 112)
MEAN = -1  # means the average of all layers
NO_ANSWER = "(no answer)"
HINT = "A question can also be asked without an image. A new image begins a new conversation."
# Darker colours where the contrast of gradio's own is below 4.5 : 1.
COLOURS = dict(
    body_text_color_subdued="*neutral_600",
    body_text_color_subdued_dark="*neutral_300",
    block_info_text_color="*neutral_600",
    block_info_text_color_dark="*neutral_300",
    input_placeholder_color="*neutral_600",
    button_primary_background_fill="*primary_600",
    button_primary_background_fill_hover="*primary_700",
)


@dataclass
class _Side:
    """The components that show one model."""

    demo: Demo
    chat: gr.Chatbot = None
    heads: gr.HTML = None
    looks: gr.HTML = None
    layer: gr.Dropdown = None
    pixels: list[gr.HTML] = field(default_factory=list)


class Page:
    """The components of the page and its events. An event returns a dict of components and new values. All other
    components stay.

    demos: the models. All get the same image and the same question, one after the other."""

    def __init__(self, demos: list[Demo], examples: list[Example]):
        self.examples, self.sides = examples, [_Side(demo) for demo in demos]
        with UploadsAlone(title="asvr demo", analytics_enabled=False, delete_cache=(3600, 3600)) as self.blocks:
            gr.HTML(markup.intro(demos))
            self._ask_parts()
            self._model_parts()
            gr.HTML(markup.text(markup.EXPLAINED))
            self._events()

    def _ask_parts(self) -> None:
        self.sessions = gr.State()
        gr.HTML(markup.text(markup.CHOOSE))
        with gr.Row():
            with gr.Column(min_width=300):
                self.buttons = self._example_buttons()
                self.file = gr.File(label="Or your own image", height=150, type="filepath", elem_id="file")
            with gr.Column(min_width=300):
                self.preview = gr.HTML(markup.text(markup.NO_IMAGE), elem_id="image")
                self.question = gr.Textbox(label="Question", info=HINT, lines=1, max_lines=4, elem_id="question")
                with gr.Row():
                    self.ask = gr.Button("Ask", variant="primary", elem_id="ask", min_width=120)
                    self.clear = gr.Button("Start again", elem_id="clear", min_width=120)
                self.message = gr.HTML(visible=False, elem_id="message")

    def _example_buttons(self) -> list[gr.Button]:
        buttons = []
        if self.examples:
            gr.HTML(markup.text("<p>Examples, each an image and a question:</p>"))
        with TemporaryDirectory() as folder, gr.Row():
            for i, example in enumerate(self.examples):
                icon = Path(folder, f"{i}.png")  # gradio copies it
                ImageOps.fit(example.image, ICON).save(icon)
                name = f"example-{i + 1}"
                buttons.append(gr.Button(example.question, icon=icon, elem_id=name, elem_classes="asvr-example"))
        return buttons

    def _model_parts(self) -> None:
        title = "The answers" if len(self.sides) > 1 else "The answer"
        gr.HTML(markup.text(markup.ANSWERS.format(title=title)))
        for side, number in self._columns():
            gr.HTML(markup.describe(side.demo))
            label, name = f"Conversation with {side.demo.name}", f"chat{number}"
            side.chat = gr.Chatbot(label=label, height=200, render_markdown=False, buttons=[], elem_id=name)
        if any(side.demo.pretrained.model.targets for side in self.sides):
            gr.HTML(markup.text(markup.HEADS))
        for side, number in self._columns(named=True):
            targets, name = side.demo.pretrained.model.targets, side.demo.name
            none = markup.text(markup.NO_HEADS.format(name=markup.html.escape(name)))
            side.heads = gr.HTML(markup.text(markup.NO_IMAGE) if targets else none, elem_id=f"heads{number}")
        gr.HTML(markup.text(markup.LOOKS))
        for side, number in self._columns(named=True):
            side.looks = gr.HTML(markup.text(markup.NO_QUESTION), elem_id=f"looks{number}")
            names = [("the average of all layers", MEAN)]
            names += [(f"layer {i + 1}", i) for i in range(side.demo.pretrained.model.llm.num_layers)]
            side.layer = gr.Dropdown(names, value=MEAN, label="Attention of", elem_id=f"layer{number}")
        if any(target.decodes for side in self.sides for target in side.demo.pretrained.model.targets):
            gr.HTML(markup.text(markup.PIXELS))
            for side, number in self._columns(named=True):
                for target in side.demo.pretrained.model.targets:
                    if target.decodes:
                        gr.HTML(markup.text(f"<p>Target {markup.html.escape(target.name)}:</p>"))
                        waiting = markup.text(markup.NO_IMAGE)
                        side.pixels.append(gr.HTML(waiting, elem_id=f"pixels{number}-{target.name}"))

    def _columns(self, named: bool = False) -> Iterator[tuple[_Side, str]]:
        """A column for each model, and the end of its components' names. named: show the model's name if there are
        several."""
        with gr.Row(equal_height=False):
            for i, side in enumerate(self.sides):
                with gr.Column(min_width=320):
                    if named and len(self.sides) > 1:
                        gr.HTML(markup.text(f"<h3>{markup.html.escape(side.demo.name)}</h3>"))
                    yield side, f"-{i + 1}" if i else ""

    def _events(self) -> None:
        # One event at a time, for all kinds and tabs, because they share the model.
        one = dict(concurrency_limit=1, concurrency_id="model")
        layers = [side.layer for side in self.sides]
        shown = [self.sessions, self.file, self.preview, self.message, self.question]
        shown += [part for side in self.sides for part in (side.chat, side.heads, side.looks, *side.pixels)]
        self.file.upload(self.show_file, [self.file], shown, api_name="show", **one)
        self.clear.click(lambda: self.show(None), None, shown, api_name="clear", **one)
        asked = [self.sessions, self.question, self.message]
        asked += [part for side in self.sides for part in (side.chat, side.looks)]
        triggers, inputs = [self.ask.click, self.question.submit], [self.question, self.sessions, *layers]
        gr.on(triggers, self.answer, inputs, asked, api_name="ask", **one)
        for i, button in enumerate(self.buttons):

            def choose(*layers: int, i: int = i) -> Iterator[dict]:
                yield from self.choose(i, *layers)

            button.click(choose, layers, shown, api_name=f"example_{i + 1}", **one)
        for side in self.sides:  # gradio's button that clears a conversation
            side.chat.clear(lambda: self.show(None), None, shown, api_name=False, **one)
        for i, side in enumerate(self.sides):

            def redraw(sessions: list[Session] | None, layer: int, i: int = i):
                own = sessions and sessions[i]
                return self._looks(self.sides[i], own, layer) if own and own.attention is not None else gr.skip()

            name = f"layer_{i + 1}" if i else "layer"
            side.layer.input(redraw, [self.sessions, side.layer], [side.looks], api_name=name, **one)

    def show_file(self, path: str | None) -> dict:
        """Show an uploaded file. If it cannot be read, the page shows a message and no image."""
        try:
            return self.show(None if path is None else read_upload(path))
        except ValueError as error:
            return self.show(None) | {self.message: _message(str(error))}

    def show(self, image: Image.Image | None, caption: str = "") -> dict:
        """Begin a new conversation with each model, with or without an image. The upload field is emptied. caption: the
        text below the image."""
        sessions, problems, values = [side.demo.session() for side in self.sides], [], {}
        for side, session in zip(self.sides, sessions, strict=True):
            targets = side.demo.pretrained.model.targets
            values |= {side.chat: [], side.looks: markup.text(markup.NO_QUESTION)}
            heads, pixels = [], []
            try:
                if image is not None:
                    side.demo.show(session, image)
                    heads, pixels = side.demo.target_panels(session)
            except ValueError as error:
                problems.append(self._of(side, str(error)))
            nothing = markup.text(markup.NO_IMAGE if image is None or problems else markup.NOTHING_SHOWN)
            if targets:
                values[side.heads] = markup.figures(heads) if heads else nothing
            for place, part in enumerate(side.pixels):
                values[part] = markup.figures(pixels[place]) if pixels else nothing
        values[self.preview] = markup.text(markup.NO_IMAGE)
        if image is not None:
            values[self.preview] = markup.preview(ImageOps.contain(image, PREVIEW), caption)
        problem = "; ".join(problems)
        return values | {self.sessions: sessions, self.file: None, self.message: _message(problem)}

    def answer(self, question: str, sessions: list[Session] | None, *layers: int) -> Iterator[dict]:
        """Ask all models, one after the other. The answers are shown word by word."""
        sessions = sessions or [side.demo.session() for side in self.sides]
        problems, kept = [], question
        yield {self.sessions: sessions, self.message: _message("")}
        for side, session, layer in zip(self.sides, sessions, layers, strict=True):
            before, text = _history(session), ""
            asked = [*before, dict(role="user", content=question.strip())]
            try:
                for piece in side.demo.ask(session, question):
                    text, kept = text + piece, ""
                    chat = [*asked, dict(role="assistant", content=text)]
                    yield {self.question: "", side.chat: chat, side.looks: markup.text(markup.NO_QUESTION)}
                history = _history(session)
                empty = history == before  # an empty answer is not remembered
                chat, kept = [*asked, dict(role="assistant", content=NO_ANSWER)] if empty else history, ""
                yield {self.question: "", side.chat: chat, side.looks: markup.text(markup.NO_QUESTION)}
                if not empty:
                    yield {side.looks: self._looks(side, session, layer)}
            except ValueError as error:
                problems.append(self._of(side, str(error)))
                yield {side.chat: _history(session), self.question: kept}
        yield {self.question: kept, self.message: _message("; ".join(dict.fromkeys(problems)))}

    def choose(self, i: int, *layers: int) -> Iterator[dict]:
        """Show an example's image and ask its question."""
        example = self.examples[i]
        answer = f"The right answer is: {example.answer}" if example.answer else ""
        shown = self.show(example.image, f"Question: {example.question} {answer}")
        yield shown
        yield from self.answer(example.question, shown[self.sessions], *layers)

    def _looks(self, side: _Side, session: Session, layer: int) -> str:
        panels = side.demo.attention_panels(session, None if layer == MEAN else layer)
        return markup.figures(panels) if panels else markup.text(markup.NO_QUESTION)

    def _of(self, side: _Side, problem: str) -> str:
        return problem if len(self.sides) == 1 else f"{side.demo.name}: {problem}"


def serve(demos: list[Demo], *, host: str, port: int, examples: list[Example] = ()) -> gr.Blocks:
    """Serve the page from a thread. Returns the page: its address is ``local_url``, and ``close()`` ends it.

    Raises ``ValueError`` if the port is not free.
    """
    page = Page(demos, list(examples)).blocks.queue(api_open=False)  # calls outside the queue would not wait
    theme = gr.themes.Default(font="system-ui", font_mono="monospace", primary_hue="blue").set(**COLOURS)
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
            css=markup.CSS,
            app_kwargs=dict(middleware=[Middleware(OwnServerAlone)]),
            prevent_thread_lock=True,
            quiet=True,
        )
    except OSError as error:
        raise ValueError(f"{host}:{port} cannot be served ({error}): give another --port") from error
    return page


def _message(problem: str):
    """A line with a problem. It stays until the next event."""
    return gr.HTML(markup.message(problem), visible=bool(problem))


def _history(session: Session) -> list[dict]:
    roles = dict(human="user", gpt="assistant")
    return [
        dict(role=roles[message["from"]], content=message["value"].replace(f"{IMAGE_MARK}\n", ""))
        for message in session.talk.messages
    ]
