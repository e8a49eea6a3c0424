"""Prompts: images and a conversation that a model is asked."""

from pathlib import Path

from PIL import Image

from asvr.base.text import nearest, short
from asvr.data.messages import in_llava_form
from asvr.data.record_keys import meant_in, unread_in_message
from asvr.data.refusals import Refused

PROMPT = ("images", "messages")


def check_prompt(i: int, prompt: dict) -> tuple[list, list]:
    """The images of a prompt, and its messages in LLaVA's form. Raises ``ValueError`` for anything that would be
    ignored."""
    if not isinstance(prompt, dict) or "messages" not in prompt:
        raise ValueError(f"prompt {i} is {short(prompt)}: expected dict(images=[...], messages=[...])")
    if unknown := [key for key in prompt if key not in PROMPT]:
        raise ValueError(f"prompt {i}: unknown key {short(unknown[0])}; {nearest(unknown[0], PROMPT)}")
    images = prompt.get("images") or []
    if not isinstance(images, list | tuple):
        raise ValueError(f"prompt {i}: images is {short(images)}: expected a list of files' names or PIL images")
    for image in images:
        if not isinstance(image, str | Path | Image.Image):
            raise ValueError(f"prompt {i}: image {short(image)}: expected a file's name or a PIL image")
    if not isinstance(prompt["messages"], list | tuple):
        raise ValueError(f"prompt {i}: messages is {short(prompt['messages'])}: expected a list of messages")
    try:
        found = in_llava_form(dict(image=list(images), conversations=list(prompt["messages"])))
    except Refused as error:
        raise Refused(f"prompt {i}: {error}", error.reason) from error
    messages = found.get("conversations", [])
    for number, message in enumerate(messages):
        if (key := unread_in_message(message)) is not None:
            hint = meant_in(message, key) or "expected 'from' and 'value' alone"
            raise ValueError(f"prompt {i}: unknown key {short(key)} in message {number}; {hint}")
    return found.get("image", []), messages
