"""Effects that follow from frozen features of examples: for examples that were never recorded.

    g(L_t)(z) − g(L_{t-1})(z) = μ_t(z) + Σ_i m̂_{t,i} B_i(z, t) + scores, initial losses + noise
    B_i(z, t) = h_iᵀ W(t) h_z + free effects of recorded examples

the regression of bilinear.py, whose kernels are of features h_i of training and h_z of test examples. A
training example that was in no recorded batch has effects by its features. A test example that was not
recorded gets, by ``transfer``, effects by its features, and the drift from a regression of the recorded test
examples' drifts on what is known of a test example before training.

GPTfluence (Chai et al. 2024, arXiv 2404.07840) fits bilinear forms by gradient descent; here they are solved.
Without features every example is its own feature, and the model is the one of regression.py.
"""

from __future__ import annotations

import copy
import dataclasses
import itertools
from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from simfluence.links import Link, link
from simfluence.runs import RunSet
from simfluence.simulators.base import Array, Examples, register
from simfluence.simulators.dynamics.cross_fit import CrossFitted
from simfluence.simulators.effects.bilinear import BilinearRegression, example_weights_of
from simfluence.simulators.effects.data import TrainingData, as_scores
from simfluence.simulators.effects.model import progress_basis
from simfluence.simulators.effects.penalty import Chosen
from simfluence.simulators.effects.regression import EffectsRegression
from simfluence.simulators.effects.simulator import EffectsSimulator
from simfluence.simulators.scores import check_scores

RIDGES: tuple[float, ...] = tuple(float(value) for value in 10.0 ** np.arange(-3, 3.5, 0.5))
"""Penalties of the regression of drifts on features, relative to the kernel."""


@register
class FeatureSimulator(EffectsSimulator):
    """Bilinear effects of frozen features, by ridge regression.

    Parameters
    ----------
    train_features, test_features : float [train, p], [test, q]; None for one feature an example.
        Centred and scaled here to mean square norm 1.
    scores : as in ``EffectsSimulator``, but with coefficients that all test examples share. Scores of any
        pair can be known without training, so they are features of pairs.
    free : the share of the prior variance of effects that features predict nothing of, 0 .. 1; both of
        training and of test examples.
    penalty, momentum, noise_correlation, decay, link, max_rows : as in ``EffectsSimulator``.
    """

    name: ClassVar[str] = "features"
    fitted: ClassVar[tuple[str, ...]] = (
        *EffectsSimulator.fitted,
        "train_features_",
        "test_features_",
        "centers_",
        "spreads_",
        "weights_",
        "score_units_",
    )

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
        link: Link | None = "identity",
        max_rows: int = 2000,
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

    def training_data(self, train: RunSet) -> TrainingData:
        """The runs, made ready; the features are read here too."""
        check_scores(self.scores, train)
        shape = (len(train.train), len(train.test))
        scores = as_scores(self.scores, shape)
        self.score_units_ = score_units(self.scores, len(scores))
        self.centers_: dict[str, Array] = {}
        self.spreads_: dict[str, float] = {}
        scaled = []
        for which, given, size in zip(
            ("train", "test"), (self.train_features, self.test_features), shape, strict=True
        ):
            features = np.empty((size, 0)) if given is None else np.array(given, np.float64)
            if features.ndim != 2 or len(features) != size or not np.isfinite(features).all():
                raise ValueError(
                    f"{which}_features must be finite and [{which}, feature] with {size} rows,"
                    f" got shape {features.shape}"
                )
            self.centers_[which] = features.mean(0)
            self.spreads_[which] = (
                float(np.sqrt(np.square(features - self.centers_[which]).sum(1).mean())) or 1.0
            )
            scaled.append((features - self.centers_[which]) / self.spreads_[which])
        self.train_features_, self.test_features_ = scaled
        return TrainingData(train, scores, self.max_rows, with_groups=False)

    def _cross_fitted(
        self, data: TrainingData, advance: Callable[[], Any], penalties: list[float] | None
    ) -> CrossFitted | None:
        return None

    def _regression(self, data: TrainingData, cross_fitted: CrossFitted | None) -> EffectsRegression:
        plain = super()._regression(data, cross_fitted)
        return BilinearRegression(
            data, plain.settings, train_kernel=self._kernel("train"), test_kernel=self._kernel("test")
        )

    def _set(self, data: TrainingData, chosen: Chosen) -> None:
        super()._set(data, chosen)
        self.weights_ = example_weights_of(chosen.fit)

    def _features(self, which: str) -> Array:
        return self.train_features_ if which == "train" else self.test_features_

    def _kernel(self, which: str) -> Array:
        """K or G of the fitted examples."""
        features = self._features(which)
        free = self.free if features.shape[1] else 1.0
        return (1 - free) * feature_kernel(features, features, which) + free * np.eye(len(features))

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
        new, model, old = copy.copy(self), self.model_, self._examples("transfer")
        new.centers_, new.spreads_ = self.centers_, self.spreads_
        new.error_, new.out_of_fold_, new.lengths_ = np.nan, np.empty((0, len(self.grid_), 0)), []
        train_kernel, test_kernel = self._kernel("train"), self._kernel("test")
        n_train, n_test = old.n_train, old.n_test
        if test_features is not None:
            new.test_features_, test_kernel = self._moved("test", test_features)
            new.test_features, n_test = np.array(test_features, np.float64), len(new.test_features_)
            if initial_loss is None:
                raise ValueError("other test examples take their initial_loss")
            scaled = self._other_scores(scores, (n_train, n_test))
            start = np.atleast_2d(np.asarray(initial_loss, np.float64))
            model = dataclasses.replace(
                model,
                scores=scaled,
                coefficients=np.repeat(model.coefficients[:, :1], n_test, axis=1),
                initial=link(start, model.settings.link).mean(0),
                prior_average=np.empty((0, n_test)),
            )
            drift, average = self._other_drift(new, model.initial, scaled, test_kernel)
            model = dataclasses.replace(model, drift=drift, average=average)
        if train_features is not None:
            if len(model.scores):
                raise ValueError("a simulator with scores stays with the training examples of its fit")
            usual = model.center @ train_kernel @ self.weights_ @ test_kernel  # [k, test]
            new.train_features_, moved = self._moved("train", train_features)
            new.train_features, n_train = np.array(train_features, np.float64), len(new.train_features_)
            train_kernel = moved.T
            steps = np.arange(1, model.total + 1)
            basis = progress_basis(steps, len(steps), model.settings.decay)
            drift = model.drift - np.add.reduceat(basis @ usual, self.grid_[:-1])
            model = dataclasses.replace(model, drift=drift, center=np.zeros(n_train))
        effects = train_kernel @ self.weights_ @ test_kernel
        new.model_ = dataclasses.replace(model, effects=effects)
        new.examples_ = Examples(
            n_train,
            n_test,
            old.train if train_features is None else "",
            old.test if test_features is None else "",
        )
        return new

    def _moved(self, which: str, given: npt.ArrayLike) -> tuple[Array, Array]:
        """Other examples' features, scaled, and their kernel with those of the fit, [fitted, other]."""
        features, known = np.array(given, np.float64), self._features(which)
        if not known.shape[1]:
            raise ValueError(f"only a simulator fitted with {which}_features can transfer to others")
        if features.ndim != 2 or features.shape[1] != known.shape[1] or not np.isfinite(features).all():
            raise ValueError(
                f"{which}_features must be finite and [{which}, {known.shape[1]}], got shape {features.shape}"
            )
        scaled = (features - self.centers_[which]) / self.spreads_[which]
        return scaled, (1 - self.free) * feature_kernel(known, scaled, which)

    def _other_scores(self, scores: Any, shape: tuple[int, int]) -> Array:
        """Scores of other test examples in the units of those of the fit."""
        scaled, fitted = as_scores(scores, shape), len(self.model_.scores)
        if fitted != len(scaled):
            raise ValueError(f"this was fitted with {fitted} arrays of scores, but {len(scaled)} came")
        units = score_units(scores, len(scaled)) / self.score_units_
        return np.asarray(scaled * units[:, None, None], np.float64)

    def _other_drift(
        self, new: FeatureSimulator, initial: Array, scores: Array, kernel: Array
    ) -> tuple[Array, Array]:
        """The drift of test examples that were not recorded, and their average trajectory."""
        model = self.model_
        fixed = np.stack([model.initial, *(model.center @ model.scores)]).T
        new_fixed = np.stack([initial, *(model.center @ scores)]).T
        known = feature_kernel(self.test_features_, self.test_features_, "test")
        share = 1 - self.free or 1.0
        cumulated = predict_drift(np.cumsum(model.drift, axis=0), fixed, new_fixed, known, kernel / share)
        average = initial + np.concatenate([np.zeros((1, len(initial))), cumulated])
        return np.diff(cumulated, axis=0, prepend=0.0), average


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
