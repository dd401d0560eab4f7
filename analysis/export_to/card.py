"""The model card of an exported folder: README.md with front matter that the Hugging Face hub reads.

    Source, Origin, format ─► front matter (huggingface_hub's ModelCardData) + sections ─► README.md

It states what is recorded, and of what is not it states that.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from analysis.export_to.card_facts import CORPORA, TOY, Corpus, encoder_licence
from analysis.export_to.formats import Format
from analysis.export_to.origin import Origin, hub_name
from analysis.export_to.source import Source
from minbert_core.config import TINY, TrialConfig
from minbert_core.config import TOY as TOY_DATA
from minbert_core.data.tasks import Task
from minbert_core.methods.heads import Cosine
from minbert_core.settings.paths import as_written
from minbert_core.settings.yaml import dump_yaml
from minbert_core.words import counted
from search.report.words import describe

if TYPE_CHECKING:  # imported where it is used, after `quieten` has told it to stay off the network
    from huggingface_hub import EvalResult, ModelCardData

METRICS = {"pearson": "pearsonr", "spearman": "spearmanr", "macro_f1": "f1"}  # our names -> the hub's


@dataclass(frozen=True)
class Wishes:
    """What the user stated for the cards; "" where nothing was."""

    licence: str = ""
    base_model: str = ""
    language: str = ""


@dataclass(frozen=True)
class Card:
    """All that a card is written from."""

    source: Source
    origin: Origin
    format: Format
    tasks: Sequence[str]
    path: str  # of the folder, as the code in the card names it
    wishes: Wishes

    @property
    def title(self) -> str:
        folder = self.source.folder
        of = self.origin.search.name if self.origin.search else (folder.parent if folder.name == "best" else folder).name
        return f"{of}: {', '.join(self.tasks)}"

    @property
    def base_model(self) -> str:
        """The hub's name of the encoder; "" if it is not known."""
        return self.wishes.base_model or hub_name(self.source.config, self.origin.search)

    def task(self, name: str) -> Task:
        return self.source.tasks[name]

    def corpus(self, name: str) -> Corpus | None:
        """Return the known corpus of a task; None for a task of the user's own."""
        if self.source.config.data == TOY_DATA and name in CORPORA:
            return TOY
        return CORPORA.get(name) if not self.task(name).is_own else None


def write_card(card: Card, folder: Path) -> None:
    """Write README.md into a folder."""
    from huggingface_hub import ModelCard

    text = "\n".join([f"---\n{_front_matter(card).to_yaml()}\n---\n", *_sections(card)])
    ModelCard(text).save(folder / "README.md")


def _front_matter(card: Card) -> ModelCardData:
    from huggingface_hub import ModelCardData

    has_corpus = any(card.corpus(name) for name in card.tasks)
    own_terms: dict[str, Any] = (
        {} if card.wishes.licence else {"license_name": "that-of-its-data-and-encoder", "license_link": "README.md#licences"}
    )
    is_similarity = card.format.is_per_task and card.source.plan(card.tasks[0]).vectors == 2
    return ModelCardData(
        base_model=card.base_model or None,
        language=card.wishes.language or ("en" if has_corpus else None),
        library_name=card.format.library,
        license=card.wishes.licence or "other",
        **own_terms,
        pipeline_tag="sentence-similarity" if is_similarity else "text-classification",
        tags=["bert", "multitask", "minbert-search", *card.tasks],
        metrics=sorted({METRICS.get(card.task(name).metric, card.task(name).metric) for name in card.tasks}),
        model_name=card.title,
        eval_results=[*_evaluations(card)] or None,
    )


def _evaluations(card: Card) -> Iterator[EvalResult]:
    """Yield an entry of model-index per task and split."""
    from huggingface_hub import EvalResult

    configuration = {name: found["mean"] for name, found in card.origin.test_of_configuration.items()}
    scores = {"dev": card.origin.dev, "test": card.origin.test or configuration}
    for name in card.tasks:
        task, corpus = card.task(name), card.corpus(name)
        for split, found in scores.items():
            if name in found:
                yield EvalResult(
                    task_type="text-classification",
                    dataset_type=name,
                    dataset_name=corpus.name if corpus else name,
                    dataset_split=split,
                    metric_type=METRICS.get(task.metric, task.metric),
                    metric_name=f"{task.metric} on {split}",
                    metric_value=round(found[name], 4),
                )


def _sections(card: Card) -> Iterator[str]:
    yield f"# {card.title}\n"
    yield f"{_summary(card)}\n"
    yield from ("## Tasks\n", *_tasks(card), "")
    yield from ("## Use\n", f"```python\n{card.format.usage(card.source, card.tasks, card.path)}```\n", *_reading(card), "")
    yield from ("## Scores\n", *_scores(card), "")
    yield from ("## How it was found\n", *_finding(card), "")
    yield from ("## Data\n", *_data(card), "")
    yield from ("## Limits\n", *_limits(card), "")
    yield from ("## Licences\n", *_licences(card), "")
    yield from ("## Citing\n", *_citing(card))


def _summary(card: Card) -> str:
    shape = card.source.model.encoder.shape
    size = f"{shape.num_hidden_layers} layers of {shape.hidden_size}"
    began = f"It began as {card.base_model}." if card.base_model else _began(card.source.config)
    *others, last = card.source.tasks
    trained = f"fine-tuned on {', '.join(others)} and {last} together" if others else f"fine-tuned on {last}"
    return (
        f"A BERT encoder ({size}) {trained} with minBERT search, exported for {card.format.library}. {began} "
        f"Its answers equal those of the original, up to float rounding ({card.format.compared}, checked at export)."
    )


def _began(config: TrialConfig) -> str:
    if config.encoder.checkpoint == TINY:
        return "It began as a tiny random encoder, for demonstrations."
    return f"It began as an encoder in a folder named {Path(config.encoder.checkpoint).name}."


def _tasks(card: Card) -> Iterator[str]:
    yield "| task | reads | answers | metric |\n|---|---|---|---|"
    for name in card.tasks:
        task = card.task(name)
        reads = "two sentences" if task.is_pair else "one sentence"
        low, high = task.label_range
        answers = ", ".join(task.classes) if task.classes else f"a value from {low:g} to {high:g}"
        yield f"| {name} | {reads} | {answers} | {task.metric} |"


def _reading(card: Card) -> Iterator[str]:
    """Yield a line about each thing that a reader of the answers must know."""
    yield f"- At most {card.source.config.max_length} tokens are read; the rest of a longer text is cut off."
    for name in card.tasks:
        task, plan = card.task(name), card.source.plan(name)
        if task.kind == "regression":
            low, high = task.label_range
            yield f"- {name}: the value is in label units, {low:g} to {high:g}; it is not clipped, so it may lie outside."
        if card.format.library == "sentence-transformers" and plan.vectors == 2:
            yield f"- {name}: {_from_cosine(card, name)}"
        elif card.format.library == "sentence-transformers" and task.kind == "binary":
            yield f"- {name}: the score is the probability of “{task.classes[1]}”."
        if card.format.library == "onnx" and task.kind == "binary":
            yield f"- {name}: the sigmoid of the logit is the probability of “{task.classes[1]}”."


def _from_cosine(card: Card, name: str) -> str:
    head: Any = card.source.model.heads[name]
    if not isinstance(card.source.plan(name).head, Cosine):
        kind = card.source.plan(name).head.kind
        return f"only the vectors are exported; the original answers through a head ({kind}) over both."
    a, b = head.a.item(), head.b.item()
    value = f"{a:.6g} * cosine {'+' if b >= 0 else '-'} {abs(b):.6g}"
    return f"the {'value' if card.task(name).kind == 'regression' else 'logit'} is {value}."


def _scores(card: Card) -> Iterator[str]:
    origin = card.origin
    if not origin.dev and not origin.test and not origin.test_of_configuration:
        yield "No scores are recorded next to these weights, a copy. `analysis/errors.py` of minBERT search measures them."
        return
    yield "| task | metric | dev | test |\n|---|---|---|---|"
    for name in card.tasks:
        dev = f"{origin.dev[name]:.4f}" if name in origin.dev else "not recorded"
        yield f"| {name} | {card.task(name).metric} | {dev} | {_test(origin, name)} |"
    yield "\nThe dev score is that of these weights, which were chosen by it: expect less on other data."
    if found := origin.test_of_configuration.get(card.tasks[0]):
        seeds = counted(len(found["values"]), "seed")
        yield f"A mean on test, with its 95 % interval, is of the same configuration trained again over {seeds}."
    if not origin.test and not origin.test_of_configuration:
        yield "No test file was opened for this model."


def _test(origin: Origin, name: str) -> str:
    own = f"{origin.test[name]:.4f}" if name in origin.test else ""
    found = origin.test_of_configuration.get(name)
    low, high = found["interval"] if found else (0.0, 0.0)
    mean = f"mean {found['mean']:.4f} [{low:.4f}, {high:.4f}]" if found else ""
    return "; ".join(filter(None, [own, mean])) or "not tested"


def _finding(card: Card) -> Iterator[str]:
    search, trial = card.origin.search, card.origin.trial
    if search is None:
        yield "One configuration was trained; no search is recorded next to it."
    else:
        yield f"A search of {counted(len(search.trials), 'trial')}, “{search.plan.about or search.name}”, chosen on dev."
        known = sorted({path for of in search.trials for path in of.params})
        yield f"\nSearched: {', '.join(f'`{path}`' for path in known) or 'nothing, its trials differ by seed'}."
        if trial is not None and trial.params:
            yield f"\nFound: `{describe(trial.params)}`."
    settings = dump_yaml(as_written(_public(card.source.config)))
    yield f"\n<details><summary>All settings</summary>\n\n```yaml\n{settings}```\n</details>"


def _public(config: TrialConfig) -> TrialConfig:
    """Return a config without the folders of the machine: of data and encoder only the last part of the name."""
    encoder = last_name(config.encoder.checkpoint)
    settled = config.encoder.model_copy(update={"checkpoint": encoder})
    return config.model_copy(update={"data": last_name(config.data), "encoder": settled})


def last_name(text: str) -> str:
    """Return the last part of an absolute path; other text as it is."""
    return Path(text).name if Path(text).is_absolute() or text.startswith("~") else text


def _data(card: Card) -> Iterator[str]:
    for name in card.tasks:
        task, corpus = card.task(name), card.corpus(name)
        about = f"{corpus.name}: {corpus.about}; {corpus.source}" if corpus else f"the user's own, {task.files['train']}"
        yield f"- {name}: {about}."
    plan = card.origin.search.plan if card.origin.search else None
    sums = plan.fingerprints if plan else {}
    mine = {key: sum_ for key, sum_ in sums.items() if key.rpartition("-")[0] in card.tasks}
    if mine:
        yield "\n" + "; ".join(f"{key} sha256 `{sum_[:16]}…`" for key, sum_ in mine.items()) + "."


def _limits(card: Card) -> Iterator[str]:
    kinds = sorted({corpus.about for name in card.tasks if (corpus := card.corpus(name))})
    learned = f"It has learned from {'; '.join(kinds)}: on other texts, languages and labels it was not measured."
    yield f"- {learned if kinds else 'It has learned from one user’s data: on other texts it was not measured.'}"
    yield "- Its probabilities are those of the training loss; they were not calibrated."
    yield "- It may repeat the biases of its pretraining and of its data. Do not decide about people by it."
    if card.source.config.data == TOY_DATA:
        yield "- It was trained on a toy corpus, and knows only its vocabulary."


def _licences(card: Card) -> Iterator[str]:
    if card.wishes.licence:
        yield f"- The weights: {card.wishes.licence}, as stated by their owner."
    encoder = card.base_model or last_name(card.source.config.encoder.checkpoint)
    if encoder != TINY:  # which is drawn at random
        yield f"- The encoder ({encoder}): {encoder_licence(encoder) or 'see its own card'}."
    for name in card.tasks:
        corpus = card.corpus(name)
        yield f"- The data of {name}: {corpus.licence if corpus else 'ask the user who trained it'}."
    yield "- The software, minBERT search: Apache-2.0."
    yield "\nThe terms of the data and the encoder may limit the use of the weights. Stated as known in 2026-11."


def _citing(card: Card) -> Iterator[str]:
    yield "Cite minBERT search (its CITATION.cff), the data as above, and BERT:"
    yield "Devlin et al. 2019, BERT: Pre-training of Deep Bidirectional Transformers, arXiv 1810.04805."
