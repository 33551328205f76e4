"""What every simulator is: hyperparameters, ``fit`` on recorded runs, ``simulate`` other curricula.

To add one: a subclass in a file of its own, decorated with ``register``; a configuration of its ``name`` in
conf/simulator/; and its import in simulators/__init__.py. The common tests then run on it.
"""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self, TypeVar

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from simfluence.curriculum import Curriculum, check_counted
from simfluence.errors import NotFittedError, RunDataError
from simfluence.runs import ExampleTable, RunSet
from simfluence.runs.schedule import as_schedule
from simfluence.simulators import state as states
from simfluence.simulators.recorded import Recorded

Array = npt.NDArray[np.float64]
Kind = TypeVar("Kind", bound="type[Simulator]")

SIMULATORS: dict[str, type[Simulator]] = {}
"""Every simulator by its name."""

ABOUT = ("examples_", "recorded_")
"""What every fitted simulator says of its training runs."""

FOLDS = 8
"""Into how many parts training runs are left out, each with a refit, where out-of-fold predictions need that.
"""


def register(kind: Kind) -> Kind:
    """Decorates a simulator: it is then found by its name."""
    if kind.name in SIMULATORS:
        raise ValueError(f"two simulators are named {kind.name!r}")
    SIMULATORS[kind.name] = kind
    return kind


@states.saved
@dataclass(frozen=True)
class Examples:
    """Which examples a simulator is about: how many, and the fingerprints of their tables."""

    n_train: int
    n_test: int
    train: str
    test: str

    @classmethod
    def of(cls, runs: RunSet) -> Examples:
        """Those of recorded runs."""
        return cls(len(runs.train), len(runs.test), runs.train.fingerprint, runs.test.fingerprint)


class Simulator(ABC):
    """A model of training: from a curriculum and the losses before its first step to all later losses.

    Constructor arguments are hyperparameters, kept as attributes of the same names. What ``fit`` finds is in
    attributes that end in an underscore; a subclass lists the names of its own in ``fitted``.
    """

    name: ClassVar[str]
    """What the simulator is called in configurations, tables and files."""

    fitted: ClassVar[tuple[str, ...]] = ()
    """The attributes that ``fit`` sets: arrays, numbers, strings, and lists, dicts and dataclasses of these.
    """

    takes_shares: ClassVar[bool] = False
    """Whether curricula may consume shares of groups; of others, only counted examples."""

    examples_: Examples | None = None
    """The examples of the training runs; None before ``fit``."""

    recorded_: Recorded | None = None
    """What the training runs had in common; None before ``fit``."""

    # ------------------------------------------------------------------------------ to be written

    @abstractmethod
    def _fit(self, train: RunSet, validation: RunSet | None) -> None:
        """Set the fitted attributes."""

    @abstractmethod
    def _simulate(
        self, curricula: Sequence[Curriculum], initial_loss: Array, learning_rate: npt.ArrayLike | None = None
    ) -> Array:
        """float [run, step + 1, test]; entries after a curriculum's end may be anything.

        ``learning_rate`` is passed on only if one was given.
        """

    # --------------------------------------------------------------------------------- to be used

    def fit(self, train: RunSet, validation: RunSet | None = None) -> Self:
        """Fit to recorded runs; ``validation`` runs, if given, choose hyperparameters left open.

        Raises ValueError if there is no run to fit, if validation runs are about other examples, or for
        curricula of shares that this simulator does not take.
        """
        if len(train) == 0:
            raise ValueError("fit() needs at least one training run")
        self._check_shares([*train.curricula, *(validation.curricula if validation is not None else [])])
        if validation is not None and len(validation) == 0:
            validation = None
        if validation is not None and not (validation.train == train.train and validation.test == train.test):
            raise ValueError("the validation runs are about other examples than the training runs")
        self._learn_of(train)
        self._fit(train, validation)
        return self

    def _learn_of(self, train: RunSet) -> None:
        """Keep which examples the runs are about and what they have in common."""
        self.examples_, self.recorded_ = Examples.of(train), Recorded.of(train)

    def simulate(
        self,
        curricula: Sequence[Curriculum],
        initial_loss: npt.ArrayLike,
        learning_rate: npt.ArrayLike | None = None,
    ) -> Array:
        """The predicted losses under these curricula; nothing else of a run is read.

        Parameters
        ----------
        curricula : one a run, over the training table of the fit.
        initial_loss : float [run, test], or [test] for all runs: the losses before the first step.
        learning_rate : float [run, step], or [step] for all runs; None is the mean schedule of the training
            runs, whose last rate goes on. Simulators that know nothing of learning rates ignore it.

        Returns
        -------
        float64 [run, step + 1, test]; [:, 0] is ``initial_loss``; NaN after the end of a curriculum that is
        shorter than the longest.

        Raises
        ------
        NotFittedError, or ValueError for other examples than those of the fit, for shares of groups, or for
        learning rates of another shape, negative or not finite.
        """
        examples = self._examples("simulate")
        curricula = list(curricula)
        if not curricula:
            raise ValueError("simulate() needs at least one curriculum")
        self._check_shares(curricula)
        for curriculum in curricula:
            if curriculum.n_examples != examples.n_train:
                raise ValueError(
                    f"this simulator was fitted to {examples.n_train} training examples, but a curriculum"
                    f" is over {curriculum.n_examples}"
                )
        losses = np.asarray(initial_loss, np.float64)
        if losses.ndim == 1:
            losses = np.broadcast_to(losses, (len(curricula), len(losses)))
        if losses.shape != (len(curricula), examples.n_test):
            raise ValueError(
                f"initial_loss must be [run, test] = ({len(curricula)}, {examples.n_test}) or [test],"
                f" got {np.shape(initial_loss)}"
            )
        steps = np.array([len(curriculum) for curriculum in curricula])
        given = () if learning_rate is None else (as_schedule(learning_rate, len(curricula), steps.max()),)
        trajectories = self._simulate(curricula, losses, *given)
        trajectories[:, 0] = losses
        trajectories[np.arange(trajectories.shape[1]) > steps[:, None]] = np.nan
        return trajectories

    def first_order(
        self,
        curriculum: Curriculum,
        initial_loss: Array,
        steps: npt.NDArray[np.int64],
        examples: npt.NDArray[np.int64],
        learning_rate: npt.ArrayLike | None = None,
    ) -> Array | None:
        """What one more use of an example in a step changes of the final losses, to first order.

        The derivative of the simulated losses after the last step of a curriculum by how much a use counts in
        the mean over its batch, while the other uses of the batch count what they did. Minus the sum over an
        example's uses approximates leaving it out.

        Parameters
        ----------
        initial_loss : float [test]. learning_rate : float [step]; see :meth:`simulate`.
        steps, examples : int [use], of every use that is asked about: the step (from 0) and the example.

        Returns
        -------
        float [use, test]; None from simulators that do not have it.
        """
        return None

    def check_examples(self, runs: RunSet) -> None:
        """Raises RunDataError unless the runs are about the examples that this simulator was fitted to."""
        examples = self._examples("check_examples")
        if Examples.of(runs) != examples:
            raise RunDataError(
                f"this simulator was fitted to {examples.n_train} training and {examples.n_test} test"
                f" examples that are not those of these runs ({len(runs.train)} and {len(runs.test)}; ids,"
                " groups or contents differ); fit it to runs over the same examples"
            )

    def check_test_examples(self, test: ExampleTable) -> None:
        """Raises RunDataError unless these are the test examples that this simulator was fitted to."""
        if test.fingerprint != self._examples("check_test_examples").test:
            raise RunDataError(
                "the test examples are not those that this simulator was fitted to (ids, groups or contents"
                " differ); pass the table of the runs that it was fitted to"
            )

    def refit(self, train: RunSet) -> Self:
        """A copy with the hyperparameters that were chosen, fitted to other runs over the same examples."""
        self.check_examples(train)
        return type(self)(**self.get_params()).fit(train)

    def out_of_fold(self, train: RunSet) -> Array:
        """The training runs, each as predicted by a fit that has not seen it, float [run, step + 1, test].

        train : the runs that this simulator was fitted to. NaN after a run's end.
        """
        self.check_examples(train)
        if len(train) < 2:
            raise ValueError("out-of-fold predictions take at least two training runs, got one")
        losses = np.full(train.loss.shape, np.nan)
        number = np.arange(len(train)) % min(FOLDS, len(train))
        for fold in range(number.max() + 1):
            inside, outside = np.flatnonzero(number != fold), np.flatnonzero(number == fold)
            held_out = train[outside]
            simulated = self.refit(train[inside]).simulate(held_out.curricula, held_out.initial_loss)
            losses[outside, : simulated.shape[1]] = simulated
        return losses

    def _check_shares(self, curricula: Sequence[Curriculum]) -> None:
        if not self.takes_shares:
            check_counted(curricula, f"the simulator {self.name!r} (for shares take 'auto')")

    def _examples(self, what: str) -> Examples:
        """NotFittedError before ``fit``."""
        if self.examples_ is None:
            raise NotFittedError(f"call fit() on this {type(self).__name__} before {what}()")
        return self.examples_

    @property
    def notes(self) -> list[str]:
        """What should be known of the fit, one sentence each; every answer says it."""
        return self.recorded_.notes if self.recorded_ is not None else []

    # ------------------------------------------------------------------------------ keeping it

    def get_params(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {name: getattr(self, name) for name in inspect.signature(type(self)).parameters}

    def __repr__(self) -> str:
        arguments = ", ".join(f"{name}={_short(value)}" for name, value in self.get_params().items())
        return f"{type(self).__name__}({arguments})"

    def state(self) -> dict[str, Any]:
        """Everything there is to know of a fitted simulator, as nested dicts, lists, numbers and arrays."""
        self._examples("state")
        values = {name: getattr(self, name) for name in (*ABOUT, *self.fitted)}
        return {"name": self.name, "params": self._portable_params(), "fitted": values}

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> Self:
        """The simulator whose ``state()`` that was; RunDataError if something is missing."""
        if missing := [name for name in inspect.signature(cls).parameters if name not in state["params"]]:
            raise RunDataError(
                f"a {cls.__name__} has the hyperparameter {missing[0]!r}, which is missing here"
            )
        simulator = cls(**state["params"])
        if missing := [name for name in (*ABOUT, *cls.fitted) if name not in state["fitted"]]:
            raise RunDataError(f"a fitted {cls.__name__} has {missing[0]!r}, which is missing here")
        for name in (*ABOUT, *cls.fitted):
            setattr(simulator, name, state["fitted"][name])
        return simulator

    def _portable_params(self) -> dict[str, Any]:
        """The constructor's arguments as plain values; subclasses that take objects make them plain here."""
        return self.get_params()

    def save(self, path: str | Path) -> None:
        """Write hyperparameters and fitted values to one safetensors file."""
        states.write(path, self.state())


def stages(total: int, what: str) -> tqdm[Any]:
    """A progress bar of a fit's stages that shows itself, with the time left, where a fit takes over five
    seconds.
    """
    return tqdm(total=total, desc=what, delay=5, leave=False, unit="stage")


def _short(value: Any) -> str:
    """Arrays, and things that hold scores, by their shape."""
    if isinstance(value, list | tuple):
        return f"[{', '.join(_short(one) for one in value)}]"
    array = getattr(value, "scores", value)
    return f"array{list(array.shape)}" if isinstance(array, np.ndarray) else repr(value)
