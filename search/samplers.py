"""The family of samplers: where in the space the next trial is drawn from. Optuna's own, built with the search's seed."""

from __future__ import annotations

from typing import Annotated, Literal

import optuna
from pydantic import Field, PositiveInt

from minbert_core.settings import BARE_NAME, Variant


class Tpe(Variant):
    """Tree-structured Parzen estimator, Bergstra et al. 2011, as Optuna has it (multivariate, constant liar)."""

    kind: Literal["tpe"] = "tpe"
    startup: PositiveInt = Field(8, description="random trials before the model is trusted")

    def build(self, seed: int) -> optuna.samplers.BaseSampler:
        return optuna.samplers.TPESampler(n_startup_trials=self.startup, seed=seed)


class Random(Variant):
    """Random search, Bergstra & Bengio 2012: each trial drawn from the domains, whatever came of the others."""

    kind: Literal["random"] = "random"

    def build(self, seed: int) -> optuna.samplers.BaseSampler:
        return optuna.samplers.RandomSampler(seed=seed)


SamplerSetting = Annotated[Tpe | Random, Field(discriminator="kind"), BARE_NAME]
