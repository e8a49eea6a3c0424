"""Our templates as transformers' chat templates (Jinja), for exported models."""

from asvr.data.templates import ChatML, Llama2, Mistral, VicunaV1, build_template

# The text of a message: pictures stand in front, each on a line of its own, as in LLaVA.
CONTENT = """\
{%- macro content(message) -%}
{%- if message['content'] is string -%}{{ message['content'] }}
{%- else -%}
{%- for part in message['content'] if part['type'] == 'image' -%}{{ '<image>\\n' }}{%- endfor -%}
{%- for part in message['content'] if part['type'] == 'text' -%}{{ part['text'] }}{%- endfor -%}
{%- endif -%}
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
{%- if message['role'] == 'user' -%}{{ USER + ': ' + content(message) + ' ' + ASSISTANT + ':' }}
{%- else -%}{{ ' ' + content(message) + EOS }}{%- endif -%}
{%- endfor -%}
"""
INST = """\
{%- for message in messages -%}
{%- if message['role'] == 'user' -%}
{%- if loop.first or BOS_EACH_ROUND -%}{{ BOS }}{%- endif -%}
{{- '[INST] ' -}}
{%- if loop.first and system -%}{{ '<<SYS>>\\n' + system + '\\n<</SYS>>\\n\\n' }}{%- endif -%}
{{- content(message) + ' [/INST]' -}}
{%- else -%}{{ ' ' + content(message) + ' ' + EOS }}{%- endif -%}
{%- endfor -%}
"""
CHATML = """\
{{- BOS -}}{%- if system -%}{{ START + 'system\\n' + system + END + '\\n' }}{%- endif -%}
{%- for message in messages -%}
{{- START + message['role'] + '\\n' + content(message) + END + '\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ START + 'assistant\\n' }}{%- endif -%}
"""


def chat_template(template: str | dict, bos: str, eos: str) -> str:
    """The Jinja form of one of our chat templates; ``ValueError`` for one that has none (``plain``, a user's own).

    bos: the text of BOS, or "" where the tokenizer puts none. Pictures stand in front of a question.
    """
    own = build_template(template)
    values = dict(BOS=bos, EOS=eos, DEFAULT_SYSTEM=getattr(own, "system", ""))
    if type(own) is VicunaV1:
        body, values = VICUNA, values | dict(USER=own.user, ASSISTANT=own.assistant)
    elif type(own) in (Llama2, Mistral):
        body, values = INST, values | dict(BOS_EACH_ROUND=own.bos_each_round)
    elif type(own) is ChatML:
        body, values = CHATML, values | dict(START=own.start, END=own.end)
    else:
        raise ValueError(f"the template {type(own).__name__} has no chat form: give another with --template")
    settings = "".join(f"{{%- set {name} = {_literal(value)} -%}}\n" for name, value in values.items())
    return settings + CONTENT + SYSTEM + body


def _literal(value: str | bool) -> str:
    return str(value).lower() if isinstance(value, bool) else repr(value)
