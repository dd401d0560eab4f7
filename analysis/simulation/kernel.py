"""The surrogate's kernel over points: Matérn with a length per parameter, at its most probable values.

A length per parameter lets the few that matter count (automatic relevance determination). There are nearly as many lengths as
recorded configurations, so the likelihood alone would fit the noise: a prior holds each near LENGTH unless the curves say more.

Sources: Rasmussen & Williams 2006, equations 4.17 (Matérn 5/2), 5.8 (likelihood) and section 5.1 (relevance).
Legend: N and P points, D numbers of a point, G parameters, K outputs.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import optimize
from threadpoolctl import threadpool_limits
from torch import Tensor

from analysis.simulation.points import Floats

NU = 2.5  # twice differentiable functions
# medians and widths (in logarithms) of the log-normal prior; two labels of a choice, and the ends of a range, are one apart
VARIANCE, NOISE, LENGTH, WIDTH = 1.0, 0.1, 3.0, 1.0
LEAST_NOISE = 1e-4  # of the outputs' variance: keeps the covariance of equal points invertible
BOUND = 7.0  # of the logarithms
TINY = 1e-12  # of a squared distance: a square root has no gradient at 0


@dataclass(frozen=True)
class Kernel:
    """A covariance of functions over points. noise: the variance of what is not a smooth function of the point."""

    variance: float
    noise: float
    length_D: Floats

    def __call__(self, a_PD: Floats, b_ND: Floats) -> Floats:
        """Compute the covariance of the functions' values at points, without noise, shape (P, N)."""
        scaled_PD, scaled_ND = a_PD / self.length_D, b_ND / self.length_D
        squares_PN = torch.from_numpy(((scaled_PD[:, None] - scaled_ND[None]) ** 2).sum(axis=2))
        covariance_PN: Floats = self.variance * _matern(squares_PN).numpy()
        return covariance_PN


def _matern(squares: Tensor) -> Tensor:
    """Compute the correlation of values at points of these squared distances, in lengths."""
    scaled = (2 * NU * squares + TINY).sqrt()
    return (1 + scaled + scaled**2 / 3) * (-scaled).exp()


def fit_kernel(x_ND: Floats, y_NK: Floats, parameter_D: NDArray[np.int64], start: Kernel | None = None) -> Kernel:
    """Fit a kernel to outputs of mean 0 and variance 1. parameter_D: the parameter, from 0 on, of each number of a point.

    The outputs share it. They are correlated, so they count as fewer (`_independent`). start: where the search begins.
    """
    groups = [np.flatnonzero(parameter_D == group) for group in range(int(parameter_D.max()) + 1)]
    squares_GNN = torch.from_numpy(
        np.array([((x_ND[:, None, group] - x_ND[None, :, group]) ** 2).sum(axis=2) for group in groups])
    )
    y, eye_NN = torch.from_numpy(y_NK), torch.eye(len(x_ND), dtype=torch.float64)
    prior = torch.tensor([VARIANCE, NOISE, *[LENGTH] * len(groups)], dtype=torch.float64).log()
    weight = _independent(y_NK) / y_NK.shape[1]

    def loss(values: Floats) -> tuple[float, Floats]:
        """Compute the negative logarithm of the posterior density, and its gradient."""
        logs = torch.tensor(values, requires_grad=True)
        variance, noise = logs[:2].exp()
        covariance_NN = variance * _matern(torch.tensordot((-2 * logs[2:]).exp(), squares_GNN, 1))
        factor_NN = torch.linalg.cholesky(covariance_NN + (noise + LEAST_NOISE) * eye_NN)
        whitened_NK = torch.linalg.solve_triangular(factor_NN, y, upper=False)
        likelihood = 0.5 * whitened_NK.square().sum() + y.shape[1] * factor_NN.diagonal().log().sum()
        total = weight * likelihood + 0.5 * ((logs - prior) / WIDTH).square().sum()
        (gradient,) = torch.autograd.grad(total, [logs])
        return float(total.detach()), gradient.numpy()

    begin = prior.numpy()
    if start is not None:
        begin = np.log([start.variance, start.noise, *[start.length_D[group[0]] for group in groups]])
    with threadpool_limits(
        1
    ):  # several threads for matrices as small as these take up to a hundred times as long on busy cores
        found = optimize.minimize(loss, begin, jac=True, method="L-BFGS-B", bounds=[(-BOUND, BOUND)] * len(begin)).x
    variance, noise, *lengths = np.exp(found).tolist()
    return Kernel(variance, noise + LEAST_NOISE, np.array(lengths)[parameter_D])


def _independent(y_NK: Floats) -> float:
    """Return as how many independent outputs the outputs count: the participation ratio of their covariance's eigenvalues."""
    covariance_KK = y_NK.T @ y_NK
    return float(np.trace(covariance_KK) ** 2 / (covariance_KK**2).sum())
