"""What MLflow runs to serve an exported model: this file is copied into the model, next to minbert_core, and run there.

A row has a `sentence`, and a `sentence2` for the tasks of pairs. Each row is answered with {task: answer}: tasks of single
sentences read `sentence`. A bad row is an MlflowException, which the server turns into an answer with status 400.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import pandas
from mlflow.exceptions import MlflowException
from mlflow.models import set_model
from mlflow.pyfunc.model import PythonModel

from minbert_core.model import Predictor, load


class ServedModel(PythonModel):
    """A saved model behind MLflow's interface."""

    def load_context(self, context: Any) -> None:
        self.predictor: Predictor = load(context.artifacts["model"])

    def predict(self, context: Any, model_input: pandas.DataFrame, params: Any = None) -> list[dict[str, Any]]:
        """Answer each row.  Raises MlflowException: an empty sentence, or one where the tasks need two."""
        seconds = model_input["sentence2"] if "sentence2" in model_input else [None] * len(model_input)
        rows = list(zip(model_input["sentence"], seconds, strict=True))
        try:
            return _answers(self.predictor, rows)
        except ValueError as error:
            raise MlflowException.invalid_parameter_value(str(error)) from None


def _answers(predictor: Predictor, rows: list[tuple[Any, Any]]) -> list[dict[str, Any]]:
    """Answer (sentence, second sentence or None) for every task that can read it.  Raises ValueError."""
    sizes = {len(task.text_columns) for task in predictor.tasks.values()}
    inputs: list[Any] = []
    number_of: list[int] = []  # input -> its row
    for number, (first, second) in enumerate(rows):
        pair = [(first, second)] if isinstance(second, str) and 2 in sizes else []
        alone = [first] if 1 in sizes or not pair else []
        inputs += pair + alone
        number_of += [number] * len(pair + alone)
    answers: list[dict[str, Any]] = [{} for _ in rows]
    for number, found in zip(number_of, predictor.predict(inputs), strict=True):
        answers[number] |= {task: asdict(answer) for task, answer in found.items()}
    return answers


set_model(ServedModel())
