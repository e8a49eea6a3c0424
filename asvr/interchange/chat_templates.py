"""Our templates in the form of transformers' chat templates (Jinja), for exported models."""

from asvr.data.templates import IMAGE_MARK, ChatML, Llama2, Mistral, Template, VicunaV1

# The text of a message. Images in front of all text get a line of their own each. Other images stay where they are. The
# only image of a question moves to its front, as in `asvr.data.conversation.parse_rounds`.
CONTENT = """\
{%- macro content(message) -%}
{%- if message['content'] is string -%}{{ message['content'] }}
{%- else -%}
{%- set seen = namespace(text=false, late=false) -%}
{%- for part in message['content'] -%}
{%- if part['type'] == 'text' -%}{%- set seen.text = true -%}{%- endif -%}
{%- if part['type'] == 'image' and seen.text -%}{%- set seen.late = true -%}{%- endif -%}
{%- endfor -%}
{%- for part in message['content'] -%}
{%- if part['type'] == 'image' -%}{{ '<image>' if seen.late else '<image>\\n' }}
{%- elif part['type'] == 'text' -%}{{ part['text'] }}{%- endif -%}
{%- endfor -%}
{%- endif -%}
{%- endmacro -%}
{%- macro question(message) -%}
{%- set text = content(message) -%}
{%- if text.split('<image>') | length == 2 -%}{{ ('<image>\\n' + text.replace('<image>', '').strip()).strip() }}
{%- else -%}{{ text }}{%- endif -%}
{%- endmacro -%}
"""
SYSTEM = """\
{%- if messages and messages[0]['role'] == 'system' -%}
{%- set system = content(messages[0]) -%}{%- set messages = messages[1:] -%}
{%- else -%}{%- set system = DEFAULT_SYSTEM -%}{%- endif -%}
"""
VICUNA = """\
{{- BOS -}}{%- if system -%}{{ system + ' ' }}{%- endif -%}
{%- for message in messages -%}
{%- if message['role'] == 'user' -%}{{ USER + ': ' + question(message) + ' ' + ASSISTANT + ':' }}
{%- else -%}{{ ' ' + content(message) + EOS }}{%- endif -%}
{%- endfor -%}
"""
INST = """\
{%- for message in messages -%}
{%- if message['role'] == 'user' -%}
{%- if loop.first or BOS_EACH_ROUND -%}{{ BOS }}{%- endif -%}
{{- '[INST] ' -}}
{%- if loop.first and system -%}{{ '<<SYS>>\\n' + system + '\\n<</SYS>>\\n\\n' }}{%- endif -%}
{{- question(message) + ' [/INST]' -}}
{%- else -%}{{ ' ' + content(message) + ' ' + EOS }}{%- endif -%}
{%- endfor -%}
"""
CHATML = """\
{{- BOS -}}{%- if system -%}{{ START + 'system\\n' + system + END + '\\n' }}{%- endif -%}
{%- for message in messages -%}
{%- set text = question(message) if message['role'] == 'user' else content(message) -%}
{{- START + message['role'] + '\\n' + text + END + '\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ START + 'assistant\\n' }}{%- endif -%}
"""
# Some tokenizers put a space in front of a text, but not after a special token. The template then writes this space: in
# training, a text at the beginning or after an image is encoded alone, and so gets the space.
SPACED = """\
{%- set prompt -%}BODY{%- endset -%}
{%- if BOS and prompt.startswith(BOS) -%}{{ BOS }}{%- set prompt = prompt[BOS | length:] -%}{%- endif -%}
{%- for text in prompt.split('<image>') -%}
{%- if not loop.first -%}{{ '<image>' }}{%- endif -%}
{%- set control = namespace(first=false) -%}
{%- for token in CONTROL -%}{%- if text.startswith(token) -%}{%- set control.first = true -%}{%- endif -%}{%- endfor -%}
{%- if text and text[0] not in ' ▁' and not control.first -%}{{ ' ' }}{%- endif -%}{{ text }}
{%- endfor -%}
"""

# Around the text tokenizer's own template. If the conversation has no system message, it gets the default one. Parts
# become texts with a mark at each image. A template that writes images itself gets the messages as they are.
OWN_SYSTEM = """\
{%- if DEFAULT_SYSTEM and (not messages or messages[0]['role'] != 'system') -%}
{%- set messages = [dict(role='system', content=DEFAULT_SYSTEM)] + messages -%}
{%- endif -%}
"""
OWN_TEXTS = """\
{%- set written = namespace(messages=[]) -%}
{%- for message in messages -%}
{%- set written.messages = written.messages + [dict(role=message['role'], content=content(message))] -%}
{%- endfor -%}
{%- set messages = written.messages -%}
"""


def chat_template(own: Template, bos: str, eos: str, *, spaced: bool = False) -> str:
    """The Jinja form of one of our chat templates.

    bos: the text of BOS, or "" if the tokenizer writes none. spaced: whether the template writes the space that the
    tokenizer puts in front of a text that is encoded alone. Raises ``ValueError`` for a template without a Jinja form
    (``plain``, a user's own).
    """
    if hasattr(own, "jinja"):
        return _of_tokenizer(own)
    values = dict(BOS=bos, EOS=eos, DEFAULT_SYSTEM=getattr(own, "system", ""))
    if type(own) is VicunaV1:
        body, values = VICUNA, values | dict(USER=own.user, ASSISTANT=own.assistant)
    elif type(own) in (Llama2, Mistral):
        body, values = INST, values | dict(BOS_EACH_ROUND=own.bos_each_round)
    elif type(own) is ChatML:
        body, values = CHATML, values | dict(START=own.start, END=own.end)
    else:
        raise ValueError(f"the template {type(own).__name__} has no chat form: give another with --template")
    if spaced:
        values["CONTROL"] = [text for text in (bos, eos, getattr(own, "start", ""), getattr(own, "end", "")) if text]
        body = SPACED.replace("BODY", body)
    return _settings(values) + CONTENT + SYSTEM + body


def _of_tokenizer(own) -> str:
    """The text tokenizer's own chat template.

    own: it has ``jinja`` (the source), ``variables`` and ``system`` (inputs of the template), ``image_parts`` (whether
    it takes image parts) and ``image`` (the text that visual tokens replace).
    """
    if own.image_parts and own.image != IMAGE_MARK:
        raise ValueError(
            f"the chat template of the text tokenizer writes {own.image!r} at the place of an image, and LLaVA's "
            f"processor reads {IMAGE_MARK!r}: this model cannot be a LLaVA folder; export it with --format asvr"
        )
    settings = _settings(dict(own.variables) | dict(DEFAULT_SYSTEM=own.system or ""))
    return settings + OWN_SYSTEM + ("" if own.image_parts else CONTENT + OWN_TEXTS) + own.jinja


def _settings(values: dict) -> str:
    return "".join(f"{{%- set {name} = {_literal(value)} -%}}\n" for name, value in values.items())


def _literal(value) -> str:
    return str(value).lower() if isinstance(value, bool) else repr(value)
