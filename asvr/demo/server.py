"""A server that asks nobody: it fetches nothing for whoever uses the page, and tells the browser to ask nobody else."""

import gradio as gr
from gradio_client.utils import is_file_obj_with_meta, is_http_url_like, traverse
from starlette.responses import PlainTextResponse

# The page takes scripts, styles, fonts and images from its own server alone, whatever gradio's front end asks for,
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
        raise gr.Error("upload the image: this page fetches nothing from elsewhere")


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
