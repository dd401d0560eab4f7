"""One folder that MLflow loads, serves and registers: it answers all tasks for one or two sentences per row.

    the saved model + minbert_core + mlflow_model.py ─► mlflow.pyfunc, with signature, example and pinned requirements

It has every task that the model has, because it is the model: the code that runs it is included.
"""

from __future__ import annotations

import json
import shlex
import warnings
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from analysis.export_to.formats import Format
from analysis.export_to.source import Source, largest
from minbert_core.data.tasks import Task
from search.environment import ROOT
from search.tracking.store import quieten_mlflow

REQUIREMENTS = ("mlflow", "torch", "numpy", "pandas", "pyarrow", "pydantic", "PyYAML", "safetensors", "tokenizers")
SINGLE = {"sentence": "A moving film."}
PAIR = {"sentence": "Is it far?", "sentence2": "How far is it?"}
PORT = 5001


def why_not(source: Source, task: str) -> str:
    """Return "": this format can hold every task."""
    return ""


def example_rows(source: Source) -> list[dict[str, str]]:
    """Return two rows that the model can answer; a single sentence only if a task reads one."""
    sizes = {len(task.text_columns) for task in source.tasks.values()}
    alone = SINGLE if 1 in sizes else {"sentence": "A man plays.", "sentence2": "A man is playing a guitar."}
    return [alone, PAIR if 2 in sizes else {"sentence": "It's not what the trailer promised."}]


def write(source: Source, tasks: Sequence[str], folder: Path) -> None:
    """Write the folder."""
    quieten_mlflow()
    import mlflow
    import pandas

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of MLflow, about integer columns and type hints, which this model has not
        mlflow.pyfunc.save_model(
            folder,
            python_model=str(Path(__file__).with_name("mlflow_model.py")),
            artifacts={"model": str(source.folder)},
            code_paths=[str(ROOT / "minbert_core")],
            signature=_signature(source),
            input_example=pandas.DataFrame(example_rows(source)).astype(object).where(lambda rows: rows.notna(), None),
            pip_requirements=[f"{name}=={version(name).partition('+')[0]}" for name in REQUIREMENTS],
            metadata={"tasks": list(source.tasks)},
        )


def _signature(source: Source) -> Any:
    """Declare a row's columns and, per task, the parts of an answer; a task is absent where it cannot read the row."""
    from mlflow.models import ModelSignature
    from mlflow.types.schema import ColSpec, Schema

    inputs: list[Any] = [ColSpec("string", "sentence")]
    if any(task.is_pair for task in source.tasks.values()):
        inputs.append(ColSpec("string", "sentence2", required=all(task.is_pair for task in source.tasks.values())))
    outputs: list[Any] = [ColSpec(_answer_type(task), name, required=False) for name, task in source.tasks.items()]
    return ModelSignature(Schema(inputs), Schema(outputs))


def _answer_type(task: Task) -> Any:
    from mlflow.types.schema import DataType, Map, Object, Property

    shares = Object([Property(name, DataType.double) for name in task.classes]) if task.classes else Map(DataType.double)
    parts = {"value": DataType.double, "label": DataType.string, "probabilities": shares, "is_cut": DataType.boolean}
    return Object([Property(name, kind) for name, kind in parts.items()])


def compare(source: Source, tasks: Sequence[str], folder: Path) -> dict[str, float]:
    """Compare the values and probabilities that the loaded model returns with the model's."""
    quieten_mlflow()
    import mlflow
    import pandas

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        loaded = mlflow.pyfunc.load_model(str(folder))
    return {
        name: largest(
            _numbers(_ours(source, name), source.tasks[name]),
            _numbers([row[name] for row in loaded.predict(pandas.DataFrame(_rows(source, name)))], source.tasks[name]),
        )
        for name in tasks
    }


def _rows(source: Source, name: str) -> list[dict[str, str]]:
    return [dict(zip(("sentence", "sentence2"), texts, strict=False)) for texts in source.examples(name)]


def _ours(source: Source, name: str) -> list[dict[str, Any]]:
    """Answer a task's examples as the project's own Python interface does."""
    inputs: list[Any] = [texts if len(texts) == 2 else texts[0] for texts in source.examples(name)]
    return [vars(answers[name]) for answers in source.predictor.predict(inputs)]


def _numbers(answers: list[dict[str, Any]], task: Task) -> torch.Tensor:
    """Return the value and the probabilities of each answer, (B, 1 + classes)."""
    return torch.tensor([[answer["value"], *(answer["probabilities"][name] for name in task.classes)] for answer in answers])


def serve_lines(source: Source, path: str) -> list[str]:
    """Return the command that serves the folder, and one that asks the server."""
    document = json.dumps({"dataframe_records": example_rows(source)})
    return [
        shlex.join(["mlflow", "models", "serve", "-m", path, "--env-manager", "local", "--port", str(PORT)]),
        f"curl http://127.0.0.1:{PORT}/invocations -H 'Content-Type: application/json' -d {shlex.quote(document)}",
    ]


def usage(source: Source, tasks: Sequence[str], path: str) -> str:
    """Return code that asks the loaded model."""
    rows = json.dumps(example_rows(source)[0])
    return (
        "import mlflow\nimport pandas\n\n"
        f'model = mlflow.pyfunc.load_model("{path}")\n'
        f"print(model.predict(pandas.DataFrame([{rows}])))\n"
        + "\n# or as a server:\n"
        + "".join(f"#   {line}\n" for line in serve_lines(source, path))
    )


FORMAT = Format(
    name="mlflow",
    packages=("mlflow",),
    is_per_task=False,
    tolerance=1e-5,
    compared="values and probabilities of the loaded model",
    why_not=why_not,
    write=write,
    compare=compare,
    library="mlflow",
    usage=usage,
)
