"""Effects that follow from frozen features of examples: for examples that were never recorded.

    g(L_t)(z) − g(L_{t-1})(z) = μ_t(z) + Σ_i m̂_{t,i} B_i(z, t) + scores, initial losses + noise
    B_i(z, t) = h_iᵀ W(t) h_z + free effects of recorded examples

the regression of bilinear.py, whose kernels are of features h_i of training and h_z of test examples. A
training example that was in no recorded batch has effects by its features. A test example that was not
recorded gets, by ``transfer``, effects by its features, and its drift from a ridge regression of the recorded
test examples' drifts on what is known of a test example before training.

GPTfluence (Chai et al. 2024, arXiv 2404.07840) fits bilinear forms by gradient descent; here they are solved.
Without features every example is its own feature, and the model is the one of regression.py.
"""

from __future__ import annotations

import copy
import dataclasses
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from simfluence.links import Link, link
from simfluence.runs import RunSet
from simfluence.simulators.base import Array, Examples, register
from simfluence.simulators.dynamics.cross_fit import CrossFitted
from simfluence.simulators.effects.bilinear import BilinearRegression
from simfluence.simulators.effects.data import TrainingData, root_mean_squares, score_arrays
from simfluence.simulators.effects.model import EffectsModel, progress_basis
from simfluence.simulators.effects.penalty import Chosen
from simfluence.simulators.effects.regression import EffectsRegression
from simfluence.simulators.effects.simulator import EffectsSimulator
from simfluence.simulators.scores import check_scores
from simfluence.simulators.state import saved


@saved
@dataclass(frozen=True)
class Features:
    """Features of examples, centred and scaled so that those of the fit have a mean square norm of 1.

    which : "train" or "test". values : float [example, feature], scaled.
    center, spread : of the examples of the fit, before.
    """

    which: str
    values: Array
    center: Array
    spread: float

    @classmethod
    def of(cls, which: str, given: npt.ArrayLike | None, size: int) -> Features:
        """Those of the examples of a fit; of None, no feature."""
        values = np.empty((size, 0)) if given is None else np.array(given, np.float64)
        if values.ndim != 2 or len(values) != size or not np.isfinite(values).all():
            raise ValueError(
                f"{which}_features must be finite and [{which}, feature] with {size} rows,"
                f" got shape {values.shape}"
            )
        center = values.mean(0)
        spread = float(np.sqrt(np.square(values - center).sum(1).mean())) or 1.0
        return cls(which, (values - center) / spread, center, spread)

    def of_others(self, given: npt.ArrayLike) -> Features:
        """The same features of other examples."""
        values = np.array(given, np.float64)
        if not len(self.center):
            raise ValueError(f"only a simulator fitted with {self.which}_features can transfer to others")
        if values.ndim != 2 or values.shape[1] != len(self.center) or not np.isfinite(values).all():
            raise ValueError(
                f"{self.which}_features must be finite and [{self.which}, {len(self.center)}],"
                f" got shape {values.shape}"
            )
        return dataclasses.replace(self, values=(values - self.center) / self.spread)

    def kernel(self, others: Features) -> Array:
        """Inner products [example, other]; of test examples, half of it is common to all.

        The common part is what a training example does to every test example alike.
        """
        products = self.values @ others.values.T
        return products if self.which == "train" else (1.0 + products) / 2


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
    fitted: ClassVar[tuple[str, ...]] = (*EffectsSimulator.fitted, "features_", "weights_", "score_units_")

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
        scores = score_arrays(self.scores, shape)
        self.score_units_ = root_mean_squares(scores)
        self.features_ = {
            "train": Features.of("train", self.train_features, shape[0]),
            "test": Features.of("test", self.test_features, shape[1]),
        }
        scores = scores / self.score_units_[:, None, None]
        return TrainingData(train, scores, self.max_rows, with_groups=False)

    def _regression(self, data: TrainingData, cross_fitted: CrossFitted | None) -> EffectsRegression:
        plain = super()._regression(data, cross_fitted)
        return BilinearRegression(
            data, plain.settings, train_kernel=self._kernel("train"), test_kernel=self._kernel("test")
        )

    def _set(self, data: TrainingData, chosen: Chosen) -> None:
        super()._set(data, chosen)
        regression, solution = chosen.fit.regression, chosen.fit.solution
        assert isinstance(regression, BilinearRegression)
        none = np.zeros_like(self.model_.effects)
        self.weights_ = none if solution is None else regression.example_weights(solution)

    def _kernel(self, which: str) -> Array:
        """K or G of the fitted examples."""
        fitted = self.features_[which]
        free = self.free if len(fitted.center) else 1.0
        return (1 - free) * fitted.kernel(fitted) + free * np.eye(len(fitted.values))

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
        new.error_, new.out_of_fold_, new.lengths_ = np.nan, np.empty((0, len(self.grid_), 0)), []
        train_kernel, test_kernel = self._kernel("train"), self._kernel("test")
        if test_features is not None:
            new.test_features = np.array(test_features, np.float64)
            tests = self.features_["test"].of_others(test_features)
            test_kernel = (1 - self.free) * self.features_["test"].kernel(tests)
            new.features_ = new.features_ | {"test": tests}
            model = self._model_of(tests, initial_loss, scores)
        if train_features is not None:
            if len(model.scores):
                raise ValueError("a simulator with scores stays with the training examples of its fit")
            usual = model.center @ train_kernel @ self.weights_ @ test_kernel  # [k, test]
            basis = progress_basis(np.arange(1, model.total + 1), model.total, model.settings.decay)
            drift = model.drift - np.add.reduceat(basis @ usual, self.grid_[:-1])
            new.train_features = np.array(train_features, np.float64)
            others = self.features_["train"].of_others(train_features)
            train_kernel = (1 - self.free) * others.kernel(self.features_["train"])
            new.features_ = new.features_ | {"train": others}
            model = dataclasses.replace(model, drift=drift, center=np.zeros(len(train_kernel)))
        effects = train_kernel @ self.weights_ @ test_kernel
        new.model_ = dataclasses.replace(model, effects=effects)
        train = old.train if train_features is None else ""
        test = old.test if test_features is None else ""
        new.examples_ = Examples(len(train_kernel), test_kernel.shape[1], train, test)
        return new

    def _model_of(self, tests: Features, initial_loss: npt.ArrayLike | None, scores: Any) -> EffectsModel:
        """The model for test examples that were not recorded, without their effects."""
        if initial_loss is None:
            raise ValueError("other test examples take their initial_loss")
        model, n_test = self.model_, len(tests.values)
        arrays = score_arrays(scores, (len(model.center), n_test))
        if len(arrays) != len(model.scores):
            raise ValueError(
                f"this was fitted with {len(model.scores)} arrays of scores, but {len(arrays)} came"
            )
        arrays = arrays / self.score_units_[:, None, None]
        start = np.atleast_2d(np.asarray(initial_loss, np.float64))
        initial = link(start, model.settings.link).mean(0)
        cumulated = predict_drift(
            np.cumsum(model.drift, axis=0),
            np.column_stack([model.initial, *(model.center @ model.scores)]),
            np.column_stack([initial, *(model.center @ arrays)]),
            self.features_["test"].values,
            tests.values,
        )
        return dataclasses.replace(
            model,
            scores=arrays,
            coefficients=np.repeat(model.coefficients[:, :1], n_test, axis=1),
            initial=initial,
            prior_average=np.empty((0, n_test)),
            drift=np.diff(cumulated, axis=0, prepend=0.0),
            average=initial + np.concatenate([np.zeros((1, n_test)), cumulated]),
        )


def predict_drift(
    known: Array, fixed: Array, new_fixed: Array, features: Array, new_features: Array
) -> Array:
    """Drifts [point, new test] of test examples from those that were recorded, [point, test].

    Ridge regression; its penalty has the least leave-one-out error over the recorded test examples.

    Parameters
    ----------
    fixed, new_fixed : [test, column], initial losses and such; each column is standardised.
    features, new_features : [test, feature], scaled together to mean square norm 1.
    """
    from sklearn.linear_model import RidgeCV  # takes two seconds to import

    center, spread = fixed.mean(0), fixed.std(0)
    fixed, new_fixed = ((part - center) / np.where(spread > 0, spread, 1.0) for part in (fixed, new_fixed))
    regression = RidgeCV(10.0 ** np.arange(-3, 3.5, 0.5)).fit(np.hstack([fixed, features]), known.T)
    predicted = regression.predict(np.hstack([new_fixed, new_features]))
    return np.asarray(predicted.reshape(len(new_fixed), -1).T, np.float64)
