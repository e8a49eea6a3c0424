"""Texts and HTML of the web page. All text from a model, a file or a user is escaped here."""

import base64
import html
import io

from PIL import Image

from asvr.demo.panels import Panel
from asvr.demo.session import Demo

GUIDE = "how-to-read"
HOW = f'<a href="#{GUIDE}">How to read the maps</a>'
INTRO = f"""
<h1>{{title}}</h1>
<p>{{who}} looks at an image and answers questions about it. {{learned}}</p>
<ol>
<li>Click an example, or choose an image of your own and ask a question.</li>
<li>Read {{answers}}.</li>
<li>Look at the maps below: what the model knows about each part of the image, and where its answer looks. The last part
of this page explains them: <a href="#{GUIDE}">how to read the maps</a>.</li>
</ol>
"""
LEARNED = (
    "In training it also learned to <strong>reconstruct the image</strong>: for each cell of the image it predicts a "
    "<em>code</em>, which is like a word that describes that part of the image."
)
CHOOSE = "<h2>Choose an image and ask</h2>"
ANSWERS = "<h2>{title}</h2>"
HEADS = f"""
<h2>Does the model know what is in the image?</h2>
<p>For each cell, the model predicts the code of that part of the image. In the first map, yellow cells are predicted
right and purple cells wrong. The second map shows how certain the model was. {HOW}</p>
"""
NO_HEADS = '<p class="asvr-note">{name} was trained without a reconstruction target, so there are no codes to show.</p>'
NOTHING_SHOWN = '<p class="asvr-note">The targets of this model have nothing to show for this image.</p>'
LOOKS = f"""
<h2>Where does the answer look?</h2>
<p>Attention says how much the model reads each cell while it writes its answer. Yellow cells are read most. {HOW}</p>
"""
PIXELS = f"""
<h2>The image that the model expects</h2>
<p>The codes of this target can be turned back into pixels. The first image is the original. The second shows what its
true codes say, and the third what the predicted codes say. {HOW}</p>
"""
EXPLAINED = f"""
<h2 id="{GUIDE}">How to read the maps</h2>
<dl>
<dt>Cell</dt>
<dd>The model cuts the image into a grid. Each cell becomes one token that the language model reads.</dd>
<dt>Code, depth</dt>
<dd>A visual tokenizer describes each cell by a number from a fixed list, its code. Semantic codes stand for what is in
the cell, pixel codes for how it looks. A cell can have several codes, one at each depth. The first is the coarsest, and
each one after it adds detail.</dd>
<dt>Right or wrong</dt>
<dd>A cell is yellow if the code that the model finds most probable is the true one. Cells are read row by row, and each
one is predicted with the true image before it, as in training. So a wrong cell does not spoil the next one. An even
background is easy to predict. Edges and rare things are hard.</dd>
<dt>Certainty</dt>
<dd>The probability that the model gives to its own code. A wrong cell with a high certainty is a mistake that the model
does not notice.</dd>
<dt>Attention</dt>
<dd>The average over all words of the answer and all attention heads. The rest of the attention is on the text. It shows
what is read, which is a hint but no proof of what the answer is based on.</dd>
<dt>A cell without colour</dt>
<dd>Nothing is predicted there: the first cell has nothing before it, or the image has no content there.</dd>
</dl>
<p>More is in the guide <code>docs/guides/demo.md</code>.</p>
"""
WAITING = '<p class="asvr-note">{}</p>'
NO_IMAGE = WAITING.format("Nothing to show yet: choose an image first.")
NO_QUESTION = WAITING.format("Nothing to show yet: ask a question about an image first.")
CSS = """
.asvr-message { background: #fde8e8; color: #8a1c1c; padding: 8px 12px; border-radius: 6px }
.asvr-note { color: var(--body-text-color-subdued) }
.asvr-text h1 { font-size: 1.7em; font-weight: 700; margin: 0 0 .4em }
.asvr-text h2 { font-size: 1.25em; font-weight: 700; margin: .6em 0 .3em }
.asvr-text h3 { font-size: 1.05em; font-weight: 700; margin: .3em 0 }
.asvr-text p, .asvr-text ol, .asvr-text dl { max-width: 80ch; margin: .3em 0; line-height: 1.5 }
.asvr-text ol { list-style: decimal; padding-left: 1.6em }
.asvr-text dt { font-weight: 700; margin-top: .5em }
.asvr-text dd { margin-left: 1em }
.asvr-text a { color: var(--link-text-color); text-decoration: underline; margin: 0; padding: 0 }
.asvr-maps { display: flex; flex-wrap: wrap; gap: 12px }
.asvr-maps figure { margin: 0; flex: none; width: calc(50% - 6px); max-width: 250px }
.asvr-maps img { width: 100%; border: 1px solid var(--border-color-primary); border-radius: 4px }
.asvr-maps figcaption { font-size: .9em; line-height: 1.35; margin-top: 4px }
.asvr-scale { display: flex; gap: 6px; align-items: center; font-size: .85em; margin: 4px 0 }
.asvr-scale span { white-space: nowrap }
.asvr-scale span:nth-child(2) { flex: 1; height: 10px; border-radius: 3px;
  background: linear-gradient(to right, #440154, #3b528b, #21918c, #5ec962, #fde725) }
.asvr-preview { margin: 0 }
.asvr-preview img { max-height: 260px; max-width: 100%; border-radius: 4px }
button.asvr-example { display: flex; flex-flow: row nowrap; justify-content: flex-start; align-items: center;
  text-align: left; white-space: normal; font-weight: 400; min-width: 220px }
button.asvr-example img { flex: none; width: 56px; height: 56px; border-radius: 4px; margin-right: 8px }
"""


def intro(demos: list[Demo]) -> str:
    models = [demo.pretrained.model for demo in demos]
    two = len(demos) > 1
    names = " and ".join(f"<strong>{html.escape(demo.name)}</strong>" for demo in demos)
    who = f"This page compares two vision-language models, {names}. Each" if two else f"The model {names}"
    return text(
        INTRO.format(
            title="What do these models see?" if two else "What does this model see?",
            who=who,
            learned=LEARNED if any(model.targets for model in models) else "",
            answers="both answers" if two else "its answer",
        )
    )


def describe(demo: Demo) -> str:
    """A heading with the model's name, and one line about its parts."""
    model = demo.pretrained.model
    image, (rows, columns) = model.layout.largest(), model.encoder.grid
    fixed = f"{rows * columns} tokens, a grid of {rows} x {columns} cells"
    tokens = fixed if model.layout.fixed else f"up to {image.num_tokens} tokens"
    targets = ", ".join(f"{target.name} ({target.describe()})" for target in model.targets)
    line = (
        f"The encoder ({type(model.encoder).__name__}) turns an image into {tokens}. The LLM has "
        f"{model.llm.num_layers} layers of width {model.llm.hidden_size}. Reconstruction targets: {targets or 'none'}. "
        f"It runs on {model.device}."
    )
    return text(f'<h3>{html.escape(demo.name)}</h3><p class="asvr-note">{html.escape(line)}</p>')


def text(content: str) -> str:
    return f'<div class="asvr-text">{content}</div>'


def figures(panels: list[Panel]) -> str:
    return f'<div class="asvr-maps">{"".join(map(_figure, panels))}</div>'


def _figure(panel: Panel) -> str:
    scale = ""
    if panel.ends:
        low, high = map(html.escape, panel.ends)
        scale = f'<div class="asvr-scale"><span>{low}</span><span></span><span>{high}</span></div>'
    words = f"<strong>{html.escape(panel.title)}</strong><br>{html.escape(panel.caption)}"
    return f"<figure>{_image(panel.image, panel.alt)}{scale}<figcaption>{words}</figcaption></figure>"


def preview(image: Image.Image, caption: str) -> str:
    """The chosen image with its caption."""
    words = f"<figcaption>{html.escape(caption)}</figcaption>" if caption else ""
    return f'<figure class="asvr-preview">{_image(image, "The chosen image")}{words}</figure>'


def message(problem: str) -> str:
    return f'<div role="alert" class="asvr-message">{html.escape(problem)}</div>'


def _image(image: Image.Image, alt: str) -> str:
    stream = io.BytesIO()
    image.save(stream, "PNG")
    data = base64.b64encode(stream.getvalue()).decode()
    return f'<img alt="{html.escape(alt, quote=True)}" src="data:image/png;base64,{data}">'
