"""docs/zoo.md: every recipe with its sizes. docs/zoo.json has the sizes, which take minutes to count."""

import json
from pathlib import Path

from mmengine.config import ConfigDict

from _pages.tables import page, table
from asvr.base.recipes import RecipeFile, list_recipes
from asvr.flops.count import Sample
from asvr.profiling.sizes import recipe_sizes
from asvr.recipe.config import PUBLISHED
from asvr.recipe.recipe import Recipe, load_recipe

DOCS = Path(__file__).parents[1]
NUMBERS = DOCS / "zoo.json"
SAMPLE = Sample()
RESULTS = DOCS.parent / "benchmarks" / "results"
ON_CPU, ON_GPU = "cpu_llava_cached", "h200_7b"

INTRO = f"""Every recipe that comes with the library. `asvr train NAME` trains it, `asvr train NAME --dry-run` prints
its sizes in detail, and `asvr list recipes` prints the names.

- **parameters**: all that the model holds, frozen parts and visual tokenizers too.
- **trained**, **TFLOPs**, **memory**: by stage, in the order of the stages.
- **TFLOPs**: of a training step on one sample, which is one image and {SAMPLE.text_tokens} text tokens. A
  multiply-accumulate is 2 FLOPs. What the config keeps in a cache is not counted, and what it computes again is
  counted again.
- **memory**: planned for one card that holds everything, in GB (1e9 bytes), for the config's own `micro_batch` and
  `max_length`. Several cards share most of it: `asvr plan NAME --plan 1x8`.

The sizes are counted from the configs, without weights. `python docs/generate.py zoo.json` counts them and
`python docs/generate.py zoo.md` writes this page."""

PAPER = """The published averages are those of the paper, of all benchmarks of its table. None of them was measured with
this library. [paper.md](paper.md) has the scores of each benchmark."""

METHODS = """One file for each method, on the 7B model of the paper and on the small scenes that train on a CPU. What
each method costs beside LLaVA was counted and timed in [methods.md](../benchmarks/results/methods.md)."""

EXAMPLES = "Small models that train within minutes, but for those with `7b` in the name."

BENCHMARKS = "[benchmarks/README.md](../benchmarks/README.md) tells how each figure is measured."

GROUPS = {
    "": ("Recipes", ""),
    "paper": ("Rows of the paper's tables", PAPER),
    "targets/vicuna7b": ("Methods on Vicuna-7B", METHODS),
    "targets/scenes": ("Methods on generated scenes", ""),
    "examples": ("Examples", EXAMPLES),
    "benchmarks": ("Recipes of the benchmarks", BENCHMARKS),
}

STUDIES = """A study compares several recipes over several seeds: `asvr study NAME`. Reports of studies that have run
here: [targets_mini](studies/targets_mini/report.md) and
[caption_free_mini](studies/caption_free_mini/report.md)."""

TOKENIZERS = "A visual tokenizer is fitted or trained by `asvr train-tokenizer NAME`, before the recipes that name it."


def zoo_page() -> str:
    numbers = json.loads(NUMBERS.read_text(encoding="utf-8"))
    recipes = list_recipes()
    blocks = []
    for folder, (title, words) in GROUPS.items():
        own = [recipe for recipe in recipes if recipe.command == "train" and _folder(recipe) == folder]
        blocks += [f"## {title}", *([words] if words else []), _table(own, numbers)]
    for title, words, command in (("Studies", STUDIES, "study"), ("Visual tokenizers", TOKENIZERS, "train-tokenizer")):
        rows = ([_link(recipe), recipe.summary] for recipe in recipes if recipe.command == command)
        blocks += [f"## {title}", words, table(("name", "what it is"), rows)]
    return page("# Model and recipe zoo", INTRO, *blocks)


def zoo_numbers() -> str:
    """JSON: a recipe's name -> `recipe_sizes`. A recipe that cannot be built here has a text that says why."""
    found, known = {}, {}
    for info in list_recipes():
        if info.command == "train":
            recipe = load_recipe(info.file)
            key = _key(recipe)  # recipes that differ in their data alone have the same sizes
            known[key] = known[key] if key in known else _sizes(recipe)
            found[info.name] = known[key]
            print(info.name, found[info.name], flush=True)
    return "{\n" + ",\n".join(f"{json.dumps(name)}: {json.dumps(sizes)}" for name, sizes in found.items()) + "\n}\n"


def _sizes(recipe: Recipe) -> dict | str:
    try:
        return recipe_sizes(recipe, SAMPLE)
    except ValueError as error:
        return str(error)


def _key(recipe: Recipe) -> str:
    stages = [stage.to_dict() for stage in recipe.stages.values()]
    for stage in stages:
        for name in ("train", "template"):
            stage["data"].pop(name)
    return json.dumps([recipe.text_tokenizer, list(recipe.stages), stages], default=str)


def _folder(recipe: RecipeFile) -> str:
    return recipe.name.rpartition("/")[0]


def _link(recipe: RecipeFile) -> str:
    return f"[{recipe.name}](../configs/{recipe.name}.py)"


def _table(recipes: list[RecipeFile], numbers: dict) -> str:
    loaded = {info.name: load_recipe(info.file) for info in recipes}
    published = any(PUBLISHED in recipe.config for recipe in loaded.values())
    measured = {name: text for name, text in _measured().items() if name in loaded}
    head = ["name", "what it is", "LLM", "encoder", "targets", "parameters", "trained", "TFLOPs", "memory, GB"]
    rows = []
    for info in recipes:
        recipe = loaded[info.name]
        row = [_link(info), info.summary, *_parts(recipe), *_numbers(numbers[info.name])]
        if published:
            said = recipe.config.get(PUBLISHED)
            row.append(f"{said['average']} ({said['table']})" if said else "")
        rows.append(row + [measured.get(info.name, "")] * bool(measured))
    return table(head + ["published average"] * published + ["measured here"] * bool(measured), rows)


def _measured() -> dict[str, str]:
    """By recipe: a training step as it was measured, with a link to the whole result."""
    cpu, gpu = (json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8")) for name in (ON_CPU, ON_GPU))
    found = {}
    for side in cpu["sides"].values():
        name = side["spec"]["config"].removeprefix("configs/").removesuffix(".py")
        found[name] = (
            f"{side['seconds']:.1f} s a step of {cpu['samples']} samples, {side['peak_gib']:.2f} GiB: "
            f"{cpu['machine']['device']}, {cpu['machine']['threads']} threads ([{ON_CPU}]({_result(ON_CPU)}))"
        )
    for side in ("asvr", "llava"):
        steps = [step for step in gpu["steps"] if (step["stage"], step["side"]) == ("finetune", side)]
        mfu, speed = ([step[key] for step in steps] for key in ("mfu_percent", "images_per_s"))
        found[f"benchmarks/vicuna7b_{side}"] = (
            f"finetune: {min(mfu):.0f} to {max(mfu):.0f} % MFU, {min(speed)} to {max(speed)} images/s: one "
            f"{gpu['machine']['device']} ([{ON_GPU}]({_result(ON_GPU)}))"
        )
    return found


def _result(name: str) -> str:
    return f"../benchmarks/results/{name}.md"


def _parts(recipe: Recipe) -> list[str]:
    model = recipe.last.model
    entries = [entry for stage in recipe.stages.values() for entry in stage.model.get("reconstruction") or []]
    targets = {entry["name"]: entry.get("type", "CodeTarget") for entry in entries}
    words = ", ".join(f"{name}: {kind}" for name, kind in targets.items()) or "none"
    return [_named(model.llm), _named(model.encoder), words]


def _named(part: ConfigDict) -> str:
    """The pretrained model that a part is, or its type."""
    inner = part.get("encoders") or [part[key] for key in ("encoder", "tokenizer") if isinstance(part.get(key), dict)]
    name = part.get("name") or part.get("model")
    if inner:
        return f"{part.type} of {', '.join(map(_named, inner))}"
    arch = (part.get("arch") or {}).get("model_type")
    return name or (f"small {arch}" if arch else part.type)


def _numbers(sizes: dict | str) -> list[str]:
    if isinstance(sizes, str):
        return [sizes, "", "", ""]
    stages = sizes["stages"].values()
    return [
        _count(sizes["parameters"]),
        *(
            ", ".join(_shown(stage[key], show) for stage in stages)
            for key, show in (("trained", _count), ("flops", _tera), ("memory", _giga))
        ),
    ]


def _shown(value, show) -> str:
    return "not counted" if isinstance(value, str) else show(value)


def _count(number: int) -> str:
    return f"{number / 1e9:.2f} B" if number >= 1e9 else f"{number / 1e6:.1f} M"


def _tera(number: float) -> str:
    return f"{number / 1e12:.1f}" if number >= 1e11 else f"{number / 1e12:.2g}"


def _giga(number: int) -> str:
    return f"{number / 1e9:.1f}"
