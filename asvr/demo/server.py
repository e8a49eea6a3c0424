"""A server that downloads nothing for its users, and forbids the browser to ask other servers."""

import gradio as gr
from gradio_client.utils import is_file_obj_with_meta, is_http_url_like, traverse
from starlette.responses import PlainTextResponse

# The browser may load scripts, styles, fonts and images only from this server. This also holds for gradio's front end
# and for links in an answer.
POLICY = "default-src 'self' data: blob: 'unsafe-inline' 'unsafe-eval'"


class UploadsAlone(gr.Blocks):
    """A page that refuses URLs as inputs. gradio alone would download a file that is given by its URL."""

    def validate_inputs(self, block_fn, inputs: list) -> None:  # gradio calls it before it touches them
        traverse(inputs, _refuse_url, is_file_obj_with_meta)
        super().validate_inputs(block_fn, inputs)


def _refuse_url(file: dict) -> None:
    if is_http_url_like(file["path"]):
        raise gr.Error("upload the image: this page fetches nothing from elsewhere")


class OwnServerAlone:
    """Middleware that forbids the browser to ask other servers. It also refuses URLs in gradio's route for files, which
    would download them."""

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
