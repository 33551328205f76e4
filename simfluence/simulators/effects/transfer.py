"""Effects that follow from frozen features of examples: simulates examples it has never seen (METHODS §2).

    g(L_t)(z) − g(L_{t-1})(z) = μ_t(z) + Σ_i m̂_{t,i} B_i(z, t) + means + noise
    B_i(z, t) = h_iᵀ W(t) h_z + free effects of seen examples

the regression of bilinear.py with kernels of features h_i of training and h_z of test examples. A training
example that was in no recorded batch has effects by its features. A test example that was not recorded
gets, by ``transfer``, effects by its features, and the drift from a regression of the recorded test
examples' drifts on what is known of a test example before training.

GPTfluence (Chai et al. 2024) fits bilinear forms by gradient descent; here they are solved. Without
features every example is its own feature, and the model is the one of deviation.py.
"""

from __future__ import annotations

import copy
import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from simfluence.runs import RunSet
from simfluence.simulators.base import Array
from simfluence.simulators.effects.bilinear import BilinearRegression
from simfluence.simulators.effects.features import progress_basis
from simfluence.simulators.effects.fitting import Chosen, Fitting, Settings, as_scores
from simfluence.simulators.effects.model import link
from simfluence.simulators.effects.regression import Regression
from simfluence.simulators.effects.simulator import EffectsSimulator

RIDGES: tuple[float, ...] = tuple(float(value) for value in 10.0 ** np.arange(-3, 3.5, 0.5))
"""Of the regression of drifts on features, relative to the kernel."""


class FeatureSimulator(EffectsSimulator):
    """Bilinear effects of frozen features, by ridge regression.

    Parameters
    ----------
    train_features, test_features : float [train, p], [test, q]; None for one feature an example.
        Centred and scaled here to mean square norm 1.
    scores : as in ``EffectsSimulator``, but with coefficients that all test examples share. Scores of
        any pair can be known without training, so they are features of pairs.
    free : the share of the prior variance of effects that features say nothing about, 0 .. 1; both of
        training and of test examples.
    penalty, momentum, noise_correlation, decay, link, max_rows : as in ``EffectsSimulator``.
    """

    name: ClassVar[str] = "features"
    train_features_: Array
    test_features_: Array
    weights_: Array
    effects_: Array
    mean_coefficients_: Array
    drift_: Array
    scale_: Array
    average_: Array
    initial_: Array

    def __init__(
        self,
        train_features: npt.ArrayLike | None = None,
        test_features: npt.ArrayLike | None = None,
        scores: Any = None,
        free: float = 0.1,
        penalty: float | None = None,
        momentum: float | None = None,
        decay: float = 0.3,
        noise_correlation: float = 0.9,
        link: str = "identity",
        max_rows: int = 3000,
    ) -> None:
        super().__init__(
            scores=scores,
            penalty=penalty,
            momentum=momentum,
            decay=decay,
            noise_correlation=noise_correlation,
            link=link,
            max_rows=max_rows,
        )
        if not 0 <= free <= 1:
            raise ValueError(f"free must lie in 0 ≤ free ≤ 1, got {free}")
        self.train_features = train_features
        self.test_features = test_features
        self.free = free

    # ------------------------------------------------------------------------------------ fitting

    def _read_arrays(self) -> None:
        super()._read_arrays()
        self.score_units_ = score_units(self.scores, len(self.scores_))
        for which, size in (("train", self.n_train_), ("test", self.n_test_)):
            given = getattr(self, f"{which}_features")
            features = np.empty((size, 0)) if given is None else np.array(given, np.float64)
            if features.ndim != 2 or len(features) != size or not np.isfinite(features).all():
                raise ValueError(
                    f"{which}_features must be finite and [{which}, feature] with {size} rows,"
                    f" got shape {features.shape}"
                )
            center = features.mean(0)
            spread = float(np.sqrt(np.square(features - center).sum(1).mean())) or 1.0
            setattr(self, f"{which}_center_", center)
            setattr(self, f"{which}_spread_", spread)
            setattr(self, f"{which}_features_", (features - center) / spread)

    def _kernel(self, which: str) -> Array:
        """K or G of the fitted examples."""
        features = getattr(self, f"{which}_features_")
        free = self.free if features.shape[1] else 1.0
        return (1 - free) * feature_kernel(features, features, which) + free * np.eye(len(features))

    def _fitting(self, train: RunSet, validation: RunSet | None) -> Fitting:
        kernels = self._kernel("train"), self._kernel("test")
        return FeatureFitting(train, validation, self.scores_, self.max_rows, *kernels)

    def _keep(self, fitting: Fitting, chosen: Chosen) -> None:
        super()._keep(fitting, chosen)
        regression = fitting.regression(chosen.settings)
        assert isinstance(regression, BilinearRegression)
        self.weights_ = np.zeros_like(self.effects_)
        if np.isfinite(chosen.penalty):
            self.weights_ = regression.example_weights(regression.dual(chosen.penalty)[0])

    # ---------------------------------------------------------------------------- other examples

    def transfer(
        self,
        train_features: npt.ArrayLike | None = None,
        test_features: npt.ArrayLike | None = None,
        initial_loss: npt.ArrayLike | None = None,
        scores: Any = None,
    ) -> FeatureSimulator:
        """A fitted simulator for other examples, described by the same features.

        Parameters
        ----------
        train_features : float [train, p] of another training table; None: the one of the fit.
        test_features : float [test, q] of other test examples, none of them recorded; None: those of the
            fit. ``initial_loss`` : float [test] or [run, test], their losses before training.
        scores : [train, test] of these tables, if this was fitted with scores.

        Raises ValueError if features or scores are missing, or of another width; or if a simulator with
        scores is to move to another training table.
        """
        new = copy.copy(self)
        new.error_, new.out_of_fold_losses_ = None, np.empty((0, len(self.grid_), 0))
        train_kernel, test_kernel = self._kernel("train"), self._kernel("test")
        if test_features is not None:
            test_kernel = new._move("test", test_features, self)
            if initial_loss is None:
                raise ValueError("other test examples take their initial_loss")
            self._need_scores(scores, new)
            start = np.atleast_2d(np.asarray(initial_loss, np.float64))
            new.initial_ = link(start, self.settings_["link"]).mean(0)
            new._set_drift(self, test_kernel)
        if train_features is not None:
            if len(self.settings_["means"]):
                raise ValueError("a simulator with scores stays with the training examples of its fit")
            average = (self.center_ * self.scale_) @ train_kernel @ self.weights_ @ test_kernel  # [k, test]
            train_kernel = new._move("train", train_features, self).T
            steps = np.arange(1, int(self.grid_[-1]) + 1)
            basis = progress_basis(steps, len(steps), self.settings_["decay"])
            new.drift_ = new.drift_ - np.add.reduceat(basis @ average, self.grid_[:-1])
            new.center_ = np.zeros(new.n_train_)  # the average batch is in the drift now
            new.scale_ = np.full(new.n_train_, self.scale_.max())
        new.effects_ = train_kernel @ self.weights_ @ test_kernel
        return new

    def _move(self, which: str, given: npt.ArrayLike, old: FeatureSimulator) -> Array:
        """Take up other examples; their kernel with those of the fit, [fitted, other]."""
        features, known = np.array(given, np.float64), getattr(old, f"{which}_features_")
        if not known.shape[1]:
            raise ValueError(f"only a simulator fitted with {which}_features can transfer to others")
        if features.ndim != 2 or features.shape[1] != known.shape[1] or not np.isfinite(features).all():
            raise ValueError(
                f"{which}_features must be finite and [{which}, {known.shape[1]}], got shape {features.shape}"
            )
        scaled = (features - getattr(self, f"{which}_center_")) / getattr(self, f"{which}_spread_")
        setattr(self, f"{which}_features_", scaled)
        setattr(self, f"{which}_features", features)
        setattr(self, f"n_{which}_", len(features))
        return (1 - self.free) * feature_kernel(known, scaled, which)

    def _need_scores(self, scores: Any, new: FeatureSimulator) -> None:
        scaled = as_scores(scores, (self.n_train_, new.n_test_))
        if len(self.scores_) != len(scaled):
            raise ValueError(
                f"this was fitted with {len(self.scores_)} arrays of scores, but {len(scaled)} came"
            )
        units = score_units(scores, len(scaled)) / self.score_units_
        new.scores_, new.shared_group_ = scaled * units[:, None, None], np.empty((0, *scaled.shape[1:]))
        new.mean_coefficients_ = np.repeat(self.mean_coefficients_[:, :1], new.n_test_, axis=1)

    def _set_drift(self, fitted: FeatureSimulator, kernel: Array) -> None:
        """The drift of test examples that were not recorded, and their average trajectory."""
        scored = [np.stack([one.initial_, *(fitted.center_ @ one.scores_)]) for one in (fitted, self)]
        share = 1 - self.free or 1.0
        known = feature_kernel(fitted.test_features_, fitted.test_features_, "test")
        cumulated = predict_drift(
            np.cumsum(fitted.drift_, axis=0), scored[0].T, scored[1].T, known, kernel / share
        )
        self.drift_ = np.diff(cumulated, axis=0, prepend=0.0)
        self.average_ = self.initial_ + np.concatenate([np.zeros((1, self.n_test_)), cumulated])

    # ------------------------------------------------------------------------------ keeping it

    def get_params(self) -> dict[str, Any]:
        """The constructor's arguments; arrays are kept with the fitted values and left out here."""
        return {**super().get_params(), "train_features": None, "test_features": None}

    def _restore(self, arrays: dict[str, Any], plain: dict[str, Any]) -> FeatureSimulator:
        super()._restore(arrays, plain)
        self.scores = list(self.scores_ * self.score_units_[:, None, None]) or None
        for which in ("train", "test"):  # so that a loaded simulator can be fitted again
            features = getattr(self, f"{which}_features_")
            if features.shape[1]:
                given = features * getattr(self, f"{which}_spread_") + getattr(self, f"{which}_center_")
                setattr(self, f"{which}_features", given)
        return self


class FeatureFitting(Fitting):
    """Recorded runs, made ready for regressions with these kernels; each is kept."""

    def __init__(
        self,
        train: RunSet,
        validation: RunSet | None,
        scores: Array,
        max_rows: int,
        train_kernel: Array,
        test_kernel: Array,
    ) -> None:
        super().__init__(train, validation, scores, np.empty((0, 0)), max_rows)
        self.scores = scores  # groups are features here, if at all
        self.kernels = {"train_kernel": train_kernel, "test_kernel": test_kernel}
        self._made: dict[Settings, BilinearRegression] = {}

    def regression(self, settings: Settings, weights: Sequence[Array] | None = None) -> Regression:
        if settings not in self._made:
            plain = super().regression(settings)
            given: dict[str, Any] = {
                field.name: getattr(plain, field.name) for field in dataclasses.fields(plain)
            }
            self._made[settings] = BilinearRegression(**given | self.kernels)
        return self._made[settings]


def score_units(scores: Any, count: int) -> Array:
    """Root mean squares of the ``count`` arrays that ``as_scores`` finds in ``scores``, [array]."""
    if not count:
        return np.ones(0)
    several = scores if isinstance(scores, list | tuple) else [scores]
    arrays = np.stack([np.asarray(getattr(one, "scores", one), np.float64) for one in several])
    return np.sqrt(np.square(arrays.reshape(count, -1)).mean(1)).clip(1e-300)


def feature_kernel(first: Array, second: Array, which: str) -> Array:
    """Inner products of standardised features; of test examples, half of it is common to all.

    The common part is what a training example does to every test example alike.
    """
    products = first @ second.T
    return products if which == "train" else (1.0 + products) / 2


def predict_drift(known: Array, fixed: Array, new_fixed: Array, kernel: Array, new_kernel: Array) -> Array:
    """Drifts [point, new test] of test examples from those that were recorded, [point, test].

        D(z) = b_0 + F_z b + f(z) + ε,     f ~ N(0, κ),   ε ~ N(0, λ)

    by generalised least squares and kriging. λ, and which columns of F are used, by the closed-form
    leave-one-out error over test examples, e_z = α_z / A_zz with A = M − M F (Fᵀ M F)⁻¹ Fᵀ M,
    M = (κ + λ)⁻¹.

    Parameters
    ----------
    fixed, new_fixed : F [test, column]. kernel : κ [test, test]; new_kernel [test, new test].
    """
    tests, columns = fixed.shape
    center, spread = fixed.mean(0), fixed.std(0)
    fixed, new_fixed = ((part - center) / np.where(spread > 0, spread, 1.0) for part in (fixed, new_fixed))
    scale = max(np.trace(kernel) / tests, 1e-300)
    best, answer = np.inf, np.repeat(known.mean(1, keepdims=True), new_kernel.shape[1], axis=1)
    for used in itertools.product((False, True), repeat=columns):
        chosen = np.flatnonzero(used)
        if len(chosen) + 2 > tests:
            continue
        design = np.column_stack([np.ones(tests), fixed[:, chosen]])
        new_design = np.column_stack([np.ones(len(new_fixed)), new_fixed[:, chosen]])
        for ridge in RIDGES:
            inverse = np.linalg.inv(kernel / scale + ridge * np.eye(tests))
            carried = inverse @ design
            coefficients = np.linalg.pinv(design.T @ carried) @ carried.T  # [column, test]
            whole = inverse - carried @ coefficients
            alpha = whole @ known.T
            error = np.square(alpha / np.maximum(np.diag(whole), 1e-12)[:, None]).mean()
            if error < best:
                best = error
                answer = (new_design @ (coefficients @ known.T) + new_kernel.T / scale @ alpha).T
    return answer
