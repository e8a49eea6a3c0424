"""The work behind the web page of `asvr.demo.page`: conversations, maps and uploads. Users take turns."""

import queue
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from asvr.data.images import open_image
from asvr.data.refusals import Refused
from asvr.demo.chat import Conversation
from asvr.demo.maps import TargetMap, as_seen
from asvr.demo.panels import Panel, attention_panels, decoded_panels, target_panels
from asvr.pretrained import Pretrained

MAX_PIXELS = 50_000_000  # of an uploaded image: 200 MB with PIL's four bytes per pixel
KEPT_SIDE = 1024  # images are not reduced below this side


@dataclass
class Session:
    """The conversation of one browser tab, with at most one image. attention: of the last answer, once it is shown."""

    talk: Conversation
    seen: Image.Image | None = None
    attention: np.ndarray | None = None


class Demo:
    """A model for the page. All sessions share it and wait for each other. name: its name on the page. Raises as
    `Conversation` does."""

    def __init__(self, pretrained: Pretrained, *, name: str = "model", max_new_tokens: int = 256):
        self.pretrained, self.name, self.max_new_tokens = pretrained, name, max_new_tokens
        self.lock = threading.Lock()
        # Four times the model's size, so that the short side of a wide image still has enough pixels.
        views = pretrained.model.views().values()
        self.kept_side = max(KEPT_SIDE, 4 * max(side for view in views for side in view.size))
        self.session()  # refuses a model that cannot be asked

    def session(self) -> Session:
        return Session(Conversation(self.pretrained, max_new_tokens=self.max_new_tokens))

    def show(self, session: Session, image: Image.Image) -> Image.Image:
        """Begin a conversation about an image (see `read_upload`). It is reduced to ``kept_side`` if it is larger."""
        image = image.copy()
        image.thumbnail((self.kept_side, self.kept_side))
        image = session.talk.show(image)
        session.seen = as_seen(self.pretrained, image)
        return image

    def target_panels(self, session: Session) -> tuple[list[Panel], list[list[Panel]]]:
        """The maps of all targets, and the decoded images of each target that decodes."""
        if not self.pretrained.model.targets:
            return [], []
        with self.lock:
            maps = session.talk.token_maps()
        codes = [own for own in maps if isinstance(own, TargetMap)]
        return target_panels(session.seen, maps), [decoded_panels(o.images) for o in codes if o.images is not None]

    def ask(self, session: Session, question: str) -> Iterator[str]:
        """The answer piece by piece. Raises ``ValueError`` with a text for the page. The conversation is then
        unchanged."""
        if not question.strip():
            raise ValueError("write a question first")

        def work(send: Callable[[str], None]) -> None:
            with self.lock:
                session.talk.ask(question, send)

        session.attention = None
        return pieces(work)

    def attention_panels(self, session: Session, layer: int | None) -> list[Panel]:
        """The panels of the last answer's attention. Without an answer or an image there are none.

        layer: from 0; None: the mean of all. Raises ``ValueError`` if the LLM has no attention weights.
        """
        if session.seen is None or not session.talk.messages:
            return []
        with self.lock:
            if session.attention is None:
                session.attention = session.talk.attention()
        weights_RC = session.attention.mean(0) if layer is None else session.attention[layer]
        return attention_panels(session.seen, weights_RC)


def read_upload(file: str | Path) -> Image.Image:
    """The image, turned upright. Raises `Refused` with a text for the page, which has the file's own name."""
    try:
        return open_image(file, max_pixels=MAX_PIXELS, upright=True)
    except Refused as error:
        raise Refused(str(error).replace(str(file), Path(str(file)).name), error.reason) from error


def pieces(work: Callable[[Callable[[str], None]], None]) -> Iterator[str]:
    """Run ``work`` in a thread, and yield its pieces of text as they come. Its error is raised at the end.

    If the caller stops reading, the work ends at its next piece.
    """
    sent, gone = queue.SimpleQueue(), threading.Event()

    def send(piece: str) -> None:
        if gone.is_set():
            raise CancelledError("nobody listens")
        sent.put(piece)

    with ThreadPoolExecutor(1) as executor:
        future = executor.submit(work, send)
        future.add_done_callback(lambda _: sent.put(None))
        try:
            while (piece := sent.get()) is not None:
                yield piece
            future.result()
        finally:
            gone.set()
