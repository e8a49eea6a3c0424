"""Questions about a scene. Each has one right answer.

Each maker takes a scene, a random generator and the names of all objects. It returns a question and its answer, or None
if the scene does not allow one. Yes and no are equally likely answers, and so are two objects that a question names.
"""

import random
import re
from collections import Counter
from collections.abc import Callable

from asvr.data.scenes.facts import TRUE_OF, UNSURE_OF
from asvr.data.scenes.scene import COLORS, PLACES, Scene, Thing
from asvr.data.scenes.sprites import group_of

Pair = tuple[str, str]


def _single(scene: Scene) -> list[Thing]:
    """Objects whose name occurs once in the scene, so that it is unambiguous."""
    often = Counter(scene.names())
    return [thing for thing in scene.things if often[thing.name] == 1]


def _two(scene: Scene, rng: random.Random, key: Callable) -> tuple[Thing, Thing] | None:
    """Two objects with unambiguous names that differ in ``key``, in random order."""
    single = _single(scene)
    pairs = [(a, b) for a in single for b in single if key(a) != key(b)]
    return rng.choice(pairs) if pairs else None


def what(scene: Scene, rng: random.Random, names: list[str]) -> Pair:
    thing = rng.choice(scene.things)
    return f"what is at the {PLACES[thing.place]}?", thing.name


def kind(scene: Scene, rng: random.Random, names: list[str]) -> Pair:
    thing = rng.choice(scene.things)
    return f"which kind of thing is at the {PLACES[thing.place]}?", group_of(thing.name)


def count(scene: Scene, rng: random.Random, names: list[str]) -> Pair:
    return "how many of the things are small?", str(sum(thing.size == "small" for thing in scene.things))


def word(scene: Scene, rng: random.Random, names: list[str]) -> Pair:
    return "which letters are in the middle?", scene.word


def knowledge(scene: Scene, rng: random.Random, names: list[str]) -> Pair | None:
    """A phrase that is true for one object of the scene, and certainly false for the others."""
    known = []
    for phrase, true in TRUE_OF.items():
        right = [name for name in scene.names() if name in true]
        if len(right) == 1 and not any(name in UNSURE_OF[phrase] for name in scene.names()):
            known.append((phrase, right[0]))
    if not known:
        return None
    phrase, answer = rng.choice(known)
    return f"which of these {phrase}?", answer


def where(scene: Scene, rng: random.Random, names: list[str]) -> Pair | None:
    single = _single(scene)
    if not single:
        return None
    thing = rng.choice(single)
    return f"where is the {thing.name}?", PLACES[thing.place]


def left_of(scene: Scene, rng: random.Random, names: list[str]) -> Pair | None:
    pair = _two(scene, rng, lambda thing: thing.place % 2)
    if pair is None:
        return None
    a, b = pair
    return f"which is further left, the {a.name} or the {b.name}?", (a if a.place % 2 == 0 else b).name


def larger(scene: Scene, rng: random.Random, names: list[str]) -> Pair | None:
    pair = _two(scene, rng, lambda thing: thing.size)
    if pair is None:
        return None
    a, b = pair
    return f"which is larger, the {a.name} or the {b.name}?", (a if a.size == "large" else b).name


def color(scene: Scene, rng: random.Random, names: list[str]) -> Pair:
    thing = rng.choice(scene.things)
    return f"what color is the plate at the {PLACES[thing.place]}?", thing.color


def pose(scene: Scene, rng: random.Random, names: list[str]) -> Pair:
    thing = rng.choice(scene.things)
    return f"how does the thing at the {PLACES[thing.place]} stand?", thing.pose


def _absent(scene: Scene, names: list[str]) -> list[str]:
    """Names of objects that are not in the scene. With a black bird in it, a bird is in it too."""
    return [name for name in names if not any(_alike(name, shown) for shown in scene.names())]


def _alike(name: str, other: str) -> bool:
    """Whether one name has all words of the other."""
    words, others = set(name.split()), set(other.split())
    return words <= others or words >= others


def exists(scene: Scene, rng: random.Random, names: list[str]) -> Pair:
    if rng.random() < 0.5:
        return f"is there a {rng.choice(scene.names())}?", "yes"
    return f"is there a {rng.choice(_absent(scene, names))}?", "no"


def there(scene: Scene, rng: random.Random, names: list[str]) -> Pair:
    shown = rng.choice(scene.names())
    pair = [shown, rng.choice(_absent(scene, names))]
    rng.shuffle(pair)
    return f"which is there, the {pair[0]} or the {pair[1]}?", shown


def plate(scene: Scene, rng: random.Random, names: list[str]) -> Pair:
    colors = {thing.color for thing in scene.things}
    shown = rng.choice(sorted(colors))
    pair = [shown, rng.choice([color for color in COLORS if color not in colors])]
    rng.shuffle(pair)
    return f"which plate is there, the {pair[0]} or the {pair[1]} one?", shown


MAKERS = dict(
    what=what,
    kind=kind,
    count=count,
    word=word,
    knowledge=knowledge,
    where=where,
    left_of=left_of,
    larger=larger,
    color=color,
    pose=pose,
    exists=exists,
    there=there,
    plate=plate,
)
YES_NO = ("exists",)
ABSENT = ("exists", "there")  # may name an absent object
UNNAMED = ("count", "word", "color", "pose", "plate")  # neither question nor answer names an object
PHOTO_KINDS = ("kind", "count", "word", "color", "pose", "plate")  # for photographs, whose names no model has learned


def ask(scene: Scene, rng: random.Random, names: list[str]) -> dict[str, Pair]:
    """One question of every kind that the scene allows."""
    made = {name: maker(scene, rng, names) for name, maker in MAKERS.items()}
    return {name: pair for name, pair in made.items() if pair is not None}


def in_turns(scene: Scene, asked: dict[str, Pair], rng: random.Random, turns: int) -> list[str]:
    """Kinds of questions for one conversation, so that no question gives away the answer of another.

    No two questions are about the same object, and no two questions about plates name the same colour. Questions with
    yes or no are drawn first, but come at any place; otherwise they would be left out more often if the answer is yes.
    """
    chosen, named = [], set()
    others = [kind for kind in asked if kind not in YES_NO]
    for kind in [kind for kind in YES_NO if kind in asked] + rng.sample(others, len(others)):
        text = " ".join(asked[kind])
        if kind in ("color", "plate"):
            about = {color for color in COLORS if color in text}
        elif kind in UNNAMED:
            about = set()
        else:
            about = {thing.name for thing in scene.things if thing.name in text or PLACES[thing.place] in text}
            if kind in ABSENT:
                about |= set(re.findall(r"(?:there a|, the|or the) (.+?)(?= or the |\?)", text))
        if len(chosen) < turns and not any(_alike(name, other) for name in about for other in named):
            chosen.append(kind)
            named |= about
    return rng.sample(chosen, len(chosen))


def caption(scene: Scene) -> str:
    """The caption: what is where. Size, colour, pose and letters are left out."""
    return ", ".join(f"{PLACES[thing.place]} {thing.name}" for thing in scene.things)


def told(scene: Scene) -> str:
    """All that questions ask for, in words: what is where, its size, its pose, the colour of its plate, the letters."""
    things = [f"{PLACES[t.place]} {t.size} {t.name} {t.pose} on {t.color}" for t in scene.things]
    return ", ".join([*things, f"middle letters {scene.word}"])
