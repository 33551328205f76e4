"""Effects as bilinear forms of frozen features: simulates examples it has never seen (METHODS §2).

With features h_i of training and h_z of test examples,

    L_t(z) − L_{t-1}(z) = μ_t(z) + Σ_i m̂_{t,i} B_i(z, t)
    B_i(z, t) = h_iᵀ W(t) h_z,     W(t) = Σ_k φ_k(t) W_k

which is linear in W: a ridge regression. Its kernel is a product of one over rows (run, step) and one
over test examples, so two small eigendecompositions solve it. The drift μ_t(z) is the mean increment of
a test example that was seen; for one that was not, its regression on [1, L_0(z), h_z].

GPTfluence (Chai et al. 2024) fits such forms by gradient descent; here they are solved. Without features
every example is its own feature, and the model is the additive one with the optimizer's memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from simfluence.curriculum import Curriculum
from simfluence.runs import RunSet
from simfluence.simulators.base import Array, Simulator
from simfluence.simulators.blocks import Features, progress_basis
from simfluence.simulators.design import record_on_grid, sum_over_intervals
from simfluence.simulators.memory import check_beta, recorded_memory, relative_rates

PENALTIES: tuple[float, ...] = tuple(float(value) for value in 10.0 ** np.arange(-3, 4.5, 0.5))


class FeatureSimulator(Simulator):
    """Bilinear effects, by ridge regression.

    Parameters
    ----------
    train_features, test_features : float [train, p], [test, q]; None for one feature an example.
        Standardised here, h_z with a constant.
    penalty : λ > 0; None chooses by cross-validated rollouts over runs (or on validation runs).
    memory : β of the optimizer's memory; None takes what the runs say, or .9.
    decay : how freely effects change with training progress (blocks.progress_basis).
    noise_memory : κ; rows are whitened by (1 − κ·lag), see regression.py.
    folds : of the cross-validation. max_rows : the grid of steps is thinned to about that many rows.

    Attributes
    ----------
    weights_ : W, float [k, p, 1 + q]. drift_ : float [interval, test].
    penalty_, penalty_errors_ : as elsewhere.
    """

    name: ClassVar[str] = "features"
    train_features_: Array
    test_features_: Array
    feature_center_: Array

    def __init__(
        self,
        train_features: npt.ArrayLike | None = None,
        test_features: npt.ArrayLike | None = None,
        penalty: float | None = None,
        memory: float | None = None,
        decay: float = 0.3,
        noise_memory: float = 0.9,
        folds: int = 5,
        max_rows: int = 3000,
    ) -> None:
        if penalty is not None and not penalty > 0:
            raise ValueError(f"penalty must be a number > 0, or None to choose it; got {penalty}")
        for beta in (memory, noise_memory):
            if beta is not None:
                check_beta(beta)
        self.train_features = train_features
        self.test_features = test_features
        self.penalty = penalty
        self.memory = memory
        self.decay = decay
        self.noise_memory = noise_memory
        self.folds = folds
        self.max_rows = max_rows

    # ------------------------------------------------------------------------------------ fitting

    def _fit(self, train: RunSet, validation: RunSet | None) -> None:
        beta, corrected = recorded_memory(train) or (0.9, True)
        self.memory_, self.corrected_ = (beta if self.memory is None else self.memory), corrected
        self.batch_size_ = float(np.median(np.concatenate([c.batch_sizes for c in train.curricula])))
        self.rates_ = relative_rates(train)
        self._standardise()
        self.penalty_errors_: dict[str, float] = {}
        if self.penalty is not None:
            self.penalty_ = self.penalty
        elif validation is None and len(train) < 3:
            self.penalty_ = PENALTIES[-1]  # nothing to choose by: next to the mean trajectory
        else:
            self.penalty_ = self._choose(train, validation)
        self._solve(train, [self.penalty_])
        self.weights_ = self._path_.pop()
        del self._path_

    def _standardise(self) -> None:
        for which, size in (("train", self.n_train_), ("test", self.n_test_)):
            given = getattr(self, f"{which}_features")
            features = np.eye(size) if given is None else np.array(given, np.float64)
            if features.ndim != 2 or len(features) != size or not np.isfinite(features).all():
                raise ValueError(
                    f"{which}_features must be finite and [{which}, feature] with {size} rows,"
                    f" got shape {features.shape}"
                )
            center = features.mean(0) if given is not None else np.zeros(size)
            spread = np.sqrt(np.square(features - center).sum(1).mean()) or 1.0
            setattr(self, f"{which}_center_", center)
            setattr(self, f"{which}_spread_", float(spread))
            scaled = (features - center) / spread
            setattr(self, f"{which}_features_", _with_constant(scaled) if which == "test" else scaled)

    def _choose(self, train: RunSet, validation: RunSet | None) -> float:
        """The λ with the least rollout error."""
        if validation is not None:
            folds = [(train, validation)]
        else:
            number = np.arange(len(train)) % min(self.folds, len(train))
            folds = [
                (train[np.flatnonzero(number != k)], train[np.flatnonzero(number == k)])
                for k in range(number.max() + 1)
            ]
        errors = np.zeros(len(PENALTIES))
        for inside, held_out in folds:
            self._solve(inside, list(PENALTIES))
            known = np.isfinite(held_out.loss[:, 1:])
            for place, weights in enumerate(self._path_):
                self.weights_ = weights
                losses = self._simulate(held_out.curricula, held_out.initial_loss.astype(np.float64))
                errors[place] += np.square(losses - held_out.loss)[:, 1:][known].mean() / len(folds)
        self.penalty_errors_ = {f"{p:g}": float(e) for p, e in zip(PENALTIES, errors, strict=True)}
        return PENALTIES[len(PENALTIES) - 1 - int(np.argmin(errors[::-1]))]

    def _solve(self, train: RunSet, penalties: list[float]) -> None:
        """W for every λ, into ``_path_``; and drift and centre.

        With row kernel K = U diag(k) Uᵀ and test kernel G = V diag(g) Vᵀ (whitened rows, Y less the
        drift), α = U [(Uᵀ Y V) / (k gᵀ + λ)] Vᵀ and W_k = Xᵀ diag(φ_k) Wᵀ α H.
        """
        recorded = record_on_grid(train, self.max_rows)
        self.grid_, grid = recorded.grid, recorded.grid
        interval, count = recorded.interval, len(grid) - 1
        features = self._features()
        rows = np.concatenate(
            [
                sum_over_intervals(features(run.curriculum), grid[: len(losses)])
                for run, losses in zip(train, recorded.losses, strict=True)
            ]
        )
        per_step = np.diff(grid)[interval][:, None]
        self.center_ = rows.sum(0) / per_step.sum()
        rows = (rows - per_step * self.center_) @ self.train_features_
        self.row_scale_ = float(1 / (np.sqrt(np.square(rows).sum(1).mean()) or 1.0))
        increments = np.concatenate([np.diff(losses, axis=0) for losses in recorded.losses])
        runs = np.bincount(interval, minlength=count)[:, None]
        self.drift_ = _sums(increments, interval, count) / runs
        rows = (rows - (_sums(rows, interval, count) / runs)[interval]) * self.row_scale_
        middle = ((grid[1:] + grid[:-1] + 1) / 2)[interval]
        basis = progress_basis(middle, int(grid[-1]), self.decay)
        design = np.concatenate([rows * phi[:, None] for phi in basis.T], axis=1)
        design = self._whiten(design, recorded.runs)
        target = self._whiten(increments - self.drift_[interval], recorded.runs)
        tests, test_vectors = np.linalg.eigh(self.test_features_ @ self.test_features_.T)
        if len(design) <= design.shape[1]:
            values, vectors = np.linalg.eigh(design @ design.T)
        else:  # the same non-zero eigenvalues, from the smaller matrix
            values, right = np.linalg.eigh(design.T @ design)
            keep = values > 1e-12 * max(values.max(), 1e-300)
            values = values[keep]
            vectors = (design @ right[:, keep]) / np.sqrt(values)
        rotated = vectors.T @ target @ test_vectors
        loaded = design.T @ vectors
        across = test_vectors.T @ self.test_features_
        shape = (basis.shape[1], rows.shape[1], self.test_features_.shape[1])
        self._path_ = [
            (loaded @ (rotated / (np.outer(values, tests).clip(0) + penalty)) @ across).reshape(shape)
            for penalty in penalties
        ]
        self._drift_regression(recorded.losses)

    def _drift_regression(self, losses: list[Array]) -> None:
        """The drift of any test example from [1, L_0, h_z], by ridge: for examples not seen."""
        start = np.stack([run[0] for run in losses]).mean(0)
        design = np.column_stack([self.test_features_, start])
        penalty = (
            1e-2 * len(start) * np.diag(np.array([0.0] + [1.0] * (self.test_features_.shape[1] - 1) + [1e-6]))
        )
        system = design.T @ design + penalty + 1e-10 * len(start) * np.eye(len(penalty))
        self.drift_weights_ = np.linalg.solve(system, design.T @ self.drift_.T)

    def _whiten(self, rows: Array, runs: list[slice]) -> Array:
        lagged = np.zeros_like(rows)
        lagged[1:] = rows[:-1]
        lagged[[rows_of.start for rows_of in runs]] = 0.0
        return rows - self.noise_memory * lagged

    def _features(self) -> Features:
        size = len(self.train_features_)
        return Features(size, ("examples",), self.memory_, self.corrected_, self.batch_size_, self.rates_)

    # --------------------------------------------------------------------------------- simulating

    def transfer(
        self, train_features: npt.ArrayLike, test_features: npt.ArrayLike, initial_loss: npt.ArrayLike
    ) -> FeatureSimulator:
        """A fitted simulator for other examples, seen or not, described by the same features.

        Parameters
        ----------
        train_features, test_features : float [train, p], [test, q] of the new tables.
        initial_loss : float [test] or [run, test], the new test examples' losses before training.

        Raises ValueError if this was fitted without features, or they are of another width.
        """
        if self.train_features is None or self.test_features is None:
            raise ValueError("only a simulator fitted with train_features and test_features can transfer")
        new = FeatureSimulator(**self.get_params())
        new.__dict__.update(self.__dict__)
        for which, given in (("train", train_features), ("test", test_features)):
            features = np.array(given, np.float64)
            if features.ndim != 2 or features.shape[1] != len(getattr(self, f"{which}_center_")):
                raise ValueError(
                    f"{which}_features must be [{which}, {len(getattr(self, f'{which}_center_'))}],"
                    f" got shape {features.shape}"
                )
            scaled = (features - getattr(self, f"{which}_center_")) / getattr(self, f"{which}_spread_")
            setattr(new, f"{which}_features_", _with_constant(scaled) if which == "test" else scaled)
            setattr(new, f"{which}_features", features)
            setattr(new, f"n_{which}_", len(features))
        # the average batch is where it was in feature space; no example of the new table carries it
        new.center_ = np.zeros(new.n_train_)
        new.feature_center_ = self._feature_center()
        start = np.atleast_2d(np.asarray(initial_loss, np.float64)).mean(0)
        design = np.column_stack([new.test_features_, start])
        new.drift_ = (design @ self.drift_weights_).T
        return new

    def _feature_center(self) -> Array:
        given = getattr(self, "feature_center_", None)
        return self.center_ @ self.train_features_ if given is None else given

    def _simulate(self, curricula: Sequence[Curriculum], initial_loss: Array) -> Array:
        steps, total = max(len(curriculum) for curriculum in curricula), int(self.grid_[-1])
        at = np.arange(1, steps + 1)
        basis = progress_basis(at, total, self.decay)
        which = np.minimum(np.searchsorted(self.grid_, at), len(self.grid_) - 1) - 1
        share = np.where(at <= total, 1 / np.diff(self.grid_)[which], 0.0)
        drift = share[:, None] * self.drift_[which]
        effects = self.weights_ @ self.test_features_.T * self.row_scale_
        center, features = self._feature_center(), self._features()
        losses = np.zeros((len(curricula), steps + 1, initial_loss.shape[1]))
        losses[:, 0] = initial_loss
        for number, curriculum in enumerate(curricula):
            rows = features(curriculum) @ self.train_features_ - center
            length = len(rows)
            change = np.einsum("tk,kpz,tp->tz", basis[:length], effects, rows, optimize=True)
            losses[number, 1 : length + 1] = initial_loss[number] + np.cumsum(change + drift[:length], 0)
        return losses

    # ------------------------------------------------------------------------------ keeping it

    def get_params(self) -> dict[str, Any]:
        """The constructor's arguments; features are kept with the fitted values and left out here."""
        return {**super().get_params(), "train_features": None, "test_features": None}

    def _restore(self, arrays: dict[str, Any], plain: dict[str, Any]) -> FeatureSimulator:
        super()._restore(arrays, plain)
        for which in ("train", "test"):  # so that a loaded simulator can be fitted again
            scaled = getattr(self, f"{which}_features_")
            scaled = scaled[:, 1:] if which == "test" else scaled
            if np.array_equal(scaled, np.eye(len(scaled))):
                continue
            given = scaled * getattr(self, f"{which}_spread_") + getattr(self, f"{which}_center_")
            setattr(self, f"{which}_features", given)
        return self


def _with_constant(features: Array) -> Array:
    """[1, h]: what a training example does to all test examples alike."""
    return np.column_stack([np.ones(len(features)), features])


def _sums(rows: Array, interval: npt.NDArray[np.int64], count: int) -> Array:
    sums = np.zeros((count, rows.shape[1]))
    np.add.at(sums, interval, rows)
    return sums
