"""The embedded corpus: a seeded generator that writes small versions of the course's tasks, and a vocabulary.

`data: toy` uses it in place of a data folder. A sentence expresses a few concepts of a small lexicon, each with one of its
synonyms. Labels follow from the concepts, plus noise: no model is perfect, but a model that learns synonyms, negation and the
comparison of two sentences beats one that does not, so trials differ. A tiny encoder learns this from scratch in seconds.
"""

from __future__ import annotations

import csv
import hashlib
import json
import string
from collections.abc import Callable, Iterable
from itertools import chain
from pathlib import Path
from random import Random

from minbert_core.data.tasks import TASKS
from minbert_core.files import replaced

VERSION = 2  # part of the cached folder's name; raise it if the files change
SIZES = {"train": 2000, "dev": 400, "test": 400}  # examples of each task


def _words(text: str) -> list[str]:
    return text.split()


def _concepts(text: str) -> list[list[str]]:
    return [concept.split("/") for concept in text.split()]


# The pair tasks describe scenes. A scene has one concept of each list; a concept is a set of synonyms.
SCENE = (
    _concepts("doctor/physician child/kid teacher/instructor lawyer/attorney singer/vocalist")
    + _concepts("writer/author cook/chef farmer/grower"),
    _concepts("buys/purchases repairs/fixes/mends carries/hauls cleans/washes watches/observes")
    + _concepts("finds/discovers hides/conceals wrecks/destroys"),
    _concepts("car/automobile bag/sack/pouch house/home boat/ship/vessel stone/rock")
    + _concepts("coat/jacket couch/sofa gift/present"),
    _concepts("forest/woods shop/store street/road/lane garden/yard city/town")
    + _concepts("river/stream valley/dale school/academy"),
)
SCENE_WEIGHTS = (0.8, 1.2, 1.2, 0.8)  # weights of person, action, thing and place in the similarity; their sum is 4
PLACE = 3
TEMPLATES = (  # mostly in the plain word order, as in real text
    *["the {0} {1} the {2} in the {3}."] * 3,
    "in the {3}, the {0} {1} the {2}.",
    "near the {3} the {0} {1} a {2}.",
)
WITHOUT_PLACE = "the {0} {1} the {2}."
DENIALS = ("never", "hardly")

# The sentiment tasks describe films. A clause is an aspect with a valence. A sentence has one or two clauses.
ASPECTS = _words("film movie story plot cast acting dialogue music ending pacing direction script humor camera work opening")
VALENCES = {
    2: _words("brilliant superb wonderful magnificent"),
    1: _words("good nice charming pleasant"),
    -1: _words("dull weak bland slow"),
    -2: _words("awful terrible dreadful horrible"),
}
NEGATIONS = ("not", "never", "hardly")
SCALES = {1.5: _words("very truly really extremely"), 0.5: _words("slightly somewhat fairly rather"), 1.0: _words("quite just")}
JOINTS = {",": 1.0, "and": 1.0, "but": 1.5}  # the clause after "but" has more weight
CUTS = (-1.6, -0.6, 0.6, 1.6)  # bounds of the summed valence between the five sentiments

SENTIMENT_NOISE = 0.12  # share of labels replaced by a random one of all five
REVIEW_NOISE = 0.05  # share of labels flipped
PARAPHRASE_NOISE = 0.08  # share of labels flipped
SIMILARITY_NOISE = 0.5  # standard deviation; labels are in [0, 5]


def toy_folder(cache: Path) -> Path:
    """Return the folder of the embedded corpus inside `cache`; the first call writes it, with a checksum of each file.

    A later call writes damaged files again, and a line says so.
    """
    folder = cache / f"toy-{VERSION}"
    checksums = folder.with_suffix(".sha256.json")  # file -> sha256
    if checksums.exists():
        _remove_damaged(folder, checksums)
    write_toy_corpus(folder)
    if not checksums.exists():
        with replaced(checksums, many_writers=True) as draft:
            draft.write_text(json.dumps(_checksums(folder)), encoding="utf-8")
    return folder


def _checksums(folder: Path) -> dict[str, str]:
    """Compute the sha256 of each file but those of the test split, which no search opens."""
    names = [name for task in TASKS.values() for split, name in task.files.items() if split != "test"]
    paths = [folder / name for name in (*names, "vocab.txt")]
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in paths if path.exists()}


def _remove_damaged(folder: Path, checksums: Path) -> None:
    """Remove the files of the corpus that do not match their checksums; every file can be generated again."""
    try:
        known = json.loads(checksums.read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        known = None
    for name, digest in _checksums(folder).items():
        if not isinstance(known, dict) or known.get(name) != digest:
            print(f"{folder / name} does not match its checksum. It is written again.")
            (folder / name).unlink(missing_ok=True)
            checksums.unlink(missing_ok=True)


def write_toy_corpus(folder: Path, seed: int = 0) -> None:
    """Write vocab.txt and the twelve files of the course's tasks, test labels included. Existing files are kept.

    A reader sees each file complete or not at all, so several processes may call this at the same time.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for task in TASKS.values():
        for split, name in task.files.items():
            columns = ["", "id", *task.text_columns, task.label_column]
            rows = _rows(GENERATORS[task.name], f"{seed}/{task.name}/{split}", SIZES[split])
            _write(folder / name, chain([columns], rows))  # rows are generated only if the file is written
    _write(folder / "vocab.txt", ([piece] for piece in vocabulary()))


def vocabulary() -> list[str]:
    """List the word pieces of vocab.txt: special tokens, characters (so that any text can be spelt), whole words."""
    characters = string.ascii_lowercase + string.digits
    words = {word for concepts in SCENE for synonyms in concepts for word in synonyms}
    words |= {word for group in (*VALENCES.values(), *SCALES.values()) for word in group}
    words |= {*ASPECTS, *NEGATIONS, *DENIALS, *JOINTS, "the", "a", "is", "in", "near"} - {","}
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    single = [*string.punctuation, *characters]
    return [*special, *single, *(f"##{c}" for c in characters), *sorted(words - set(single))]


def _rows(generate: Callable[[Random], list[str]], stream: str, count: int) -> Iterable[list[str]]:
    random = Random(stream)  # one stream per file, so that the size of one file does not change another
    for index in range(count):
        identity = hashlib.sha256(f"{stream}/{index}".encode()).hexdigest()[:25]
        yield [str(index), identity, *generate(random)]


def _write(path: Path, rows: Iterable[list[str]]) -> None:
    if path.exists():
        return
    with replaced(path, many_writers=True) as draft, draft.open("w", encoding="utf-8", newline="") as file:
        # vocab.txt has a lone quote as a line, and no quoting: no field here holds a TAB or needs a quote
        csv.writer(file, delimiter="\t", lineterminator="\n", quoting=csv.QUOTE_NONE, quotechar=None).writerows(rows)


# ------------------------------------------------------------------------------------------------------------- the tasks


def _sentiment(random: Random) -> list[str]:
    """Generate a sentence and its sentiment, 0 to 4, from the sum of its clauses' valences."""
    total, text = _opinion(random)
    label = sum(total > cut for cut in CUTS)
    if random.random() < SENTIMENT_NOISE:
        label = random.randrange(5)
    return [text, str(label)]


def _review(random: Random) -> list[str]:
    """Generate a review of four to seven sentences, mostly of one leaning; the label is 1 if the valences' sum is > 0."""
    leaning = random.choice((1, -1))
    valences = (*VALENCES, leaning, 2 * leaning)
    totals, sentences = zip(*(_opinion(random, valences) for _ in range(random.randint(4, 7))), strict=True)
    label = (sum(totals) > 0) != (random.random() < REVIEW_NOISE)
    return ["".join(sentences), str(int(label))]


def _opinion(random: Random, valences: tuple[int, ...] = tuple(VALENCES)) -> tuple[float, str]:
    """Generate the valence and the text of a sentence: one or two clauses, each with a valence of `valences`."""
    total, words = 0.0, []
    for position, aspect in enumerate(random.sample(ASPECTS, random.choice((1, 1, 1, 2, 2)))):
        value = float(random.choice(valences))
        adjective = random.choice(VALENCES[int(value)])
        if position:
            joint = random.choice(tuple(JOINTS))
            words.append(joint)
            value *= JOINTS[joint]
        words += ["the", aspect, "is"]
        if random.random() < 0.2:
            words.append(random.choice(NEGATIONS))
            value *= -0.5  # "not awful" is less than good
        if random.random() < 0.3:
            scale = random.choice(tuple(SCALES))
            words.append(random.choice(SCALES[scale]))
            value *= scale
        words.append(adjective)
        total += value
    return total, " " + " ".join(words).capitalize() + " ."  # the course's sentences begin with a space


def _paraphrase(random: Random) -> list[str]:
    """Generate two sentences and whether they are paraphrases; otherwise concepts are changed, denied or omitted."""
    first = _scene(random)
    same = random.random() < 0.5
    second, denied = list(first), False
    if not same:
        way = random.random()
        if way < 0.4:
            second = _changed(first, random.randint(1, 4), random)
        else:
            second = _changed(first, random.randint(0, 2), random)
            denied = way < 0.75
            second[PLACE] = second[PLACE] if denied else None
    label = same != (random.random() < PARAPHRASE_NOISE)
    return [_say(first, random), _say(second, random, denied), str(float(label))]


def _similarity(random: Random) -> list[str]:
    """Generate two sentences and their similarity, 0 to 5: the weight of the common concepts, lower if one is denied."""
    first = _scene(random)
    second = _changed(first, random.randint(0, 4), random)
    if random.random() < 0.2:
        second[PLACE] = None
    denied = random.random() < 0.3
    kept = sum(weight for weight, a, b in zip(SCENE_WEIGHTS, first, second, strict=True) if a == b)
    score = 5 * kept / 4 * (0.3 if denied else 1) + random.gauss(0, SIMILARITY_NOISE)
    return [_say(first, random), _say(second, random, denied), f"{min(max(score, 0), 5):.1f}"]


GENERATORS: dict[str, Callable[[Random], list[str]]] = {
    "sst": _sentiment,
    "para": _paraphrase,
    "sts": _similarity,
    "cfimdb": _review,
}

Scene = list[int | None]  # the index of a concept in each list of SCENE; None: not mentioned


def _scene(random: Random) -> Scene:
    return [random.randrange(len(concepts)) for concepts in SCENE]


def _changed(scene: Scene, count: int, random: Random) -> Scene:
    """Return the scene with `count` of its concepts replaced by others."""
    changed = list(scene)
    for slot in random.sample(range(len(SCENE)), count):
        changed[slot] = random.choice([index for index in range(len(SCENE[slot])) if index != scene[slot]])
    return changed


def _say(scene: Scene, random: Random, denied: bool = False) -> str:
    words = ["" if index is None else random.choice(SCENE[slot][index]) for slot, index in enumerate(scene)]
    if denied:
        words[1] = f"{random.choice(DENIALS)} {words[1]}"
    return (random.choice(TEMPLATES) if words[PLACE] else WITHOUT_PLACE).format(*words).capitalize()
