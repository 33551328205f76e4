"""Several optimizers over one model: each parameter counts with its own rate and optimizer, or is refused."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from attribution_models import naive_gradients, network, points

from simfluence import RunRecorder, RunSet
from simfluence.attribution import (
    AttributionContext,
    adam_similarity,
    attribute,
    gradient_similarity,
    recorded_checkpoints,
    tracin,
)
from simfluence.attribution.groups import adam_eps, optimizers_of, relative_rates
from simfluence.errors import RunDataError

LAST, MATRICES = ["3.weight"], ["0.weight", "3.weight"]
SGD, AdamW = torch.optim.SGD, torch.optim.AdamW


class Recorded:
    """A recorded run of the network over four points; ``optimizers`` takes the names of parameters that the
    second one trains, and what makes each."""

    def __init__(
        self,
        folder: Path,
        of_second: Sequence[str],
        first: Callable[[Any], Any],
        second: Callable[[Any], Any],
        steps: int = 8,
        turns: bool = False,
    ) -> None:
        self.objective, self.data = network(), points(4)
        module = self.objective.module
        named = dict(module.named_parameters())
        self.of_first = [name for name in named if name not in of_second]
        made = [first([named[name] for name in self.of_first]), second([named[name] for name in of_second])]
        self.batches = [[step % 4, (step + 1) % 4] for step in range(steps)]
        rows = [{"id": i} for i in range(4)]

        def loss(model: Any, examples: list[Any]) -> torch.Tensor:
            return self.objective.losses([self.data[e["id"]] for e in examples])

        recorder = RunRecorder(folder / "set", rows, rows)
        with recorder.run("a", model=module, loss=loss, optimizer=made, keep_weights="every") as run:
            for step, batch in enumerate(self.batches):
                module.zero_grad()
                self.objective.losses([self.data[i] for i in batch]).mean().backward()
                for optimizer in [made[step % 2]] if turns else made:
                    optimizer.step()
                run.step(batch)
        self.run = RunSet.load(folder / "set")[0]
        self.checkpoints = recorded_checkpoints(folder / "set" / "a", self.run, range(steps))
        self.checkpoints[0].load(module)

    def scores(self, name: str = "gradient_step", **options: Any) -> Any:
        """Of the weights before training."""
        texts = [""] * len(self.data)
        context = AttributionContext(
            self.objective, self.data, self.data, texts, texts, self.checkpoints[:1], str, batch=2,
            optimizer=self.run.optimizer, rates=lambda: relative_rates(self.run),
        )  # fmt: skip
        return attribute(context, name, **options)

    def predicted(self, scores: np.ndarray, steps: int | None = None) -> np.ndarray:
        """What the first steps (all) take off the losses, [test]."""
        each = zip(self.run.learning_rate[:steps], self.batches, strict=False)
        return sum(rate / 2 * scores[batch].sum(0) for rate, batch in each)


def experienced_adam(lr: float, **options: Any) -> Callable[[Any], AdamW]:
    """Makes an AdamW of the last layer, without momentum, that has seen many batches of two."""
    objective, data = network(), points(4)
    g = naive_gradients(objective, data, {"3.weight": objective.module[3].weight})
    square = g.mean(0).square() + g.var(0, correction=0) / 2

    def make(parameters: list[torch.nn.Parameter]) -> AdamW:
        made = AdamW(parameters, lr=lr, betas=(0.0, 1 - 1e-9), weight_decay=0.0, **options)
        (weight,) = parameters
        state = {"step": torch.tensor(1e12), "exp_avg": torch.zeros_like(weight)}
        made.state[weight] = state | {"exp_avg_sq": square.reshape(weight.shape)}
        return made

    return make


def test_two_sgds_with_rates_of_their_own(tmp_path: Path) -> None:
    """A step of both, and all steps, take off the losses what was predicted."""
    made = Recorded(tmp_path, LAST, lambda p: SGD(p, lr=1e-5), lambda p: SGD(p, lr=1e-4))
    scores, loss = made.scores().scores, made.run.loss
    np.testing.assert_allclose(made.predicted(scores, 1), loss[0] - loss[1], rtol=1e-3)
    np.testing.assert_allclose(made.predicted(scores), loss[0] - loss[-1], rtol=1e-2)
    summed = tracin(
        made.objective, made.data, made.data, made.checkpoints, curriculum=made.run.curriculum
    ).scores.sum(0)
    np.testing.assert_allclose(summed, loss[0] - loss[-1], rtol=1e-3)


def test_two_sgds_by_turns(tmp_path: Path) -> None:
    """Each parameter was trained in every other step, with its own rate."""
    made = Recorded(tmp_path, LAST, lambda p: SGD(p, lr=1e-5), lambda p: SGD(p, lr=1e-4), turns=True)
    summed = tracin(
        made.objective, made.data, made.data, made.checkpoints, curriculum=made.run.curriculum
    ).scores.sum(0)
    np.testing.assert_allclose(summed, made.run.loss[0] - made.run.loss[-1], rtol=1e-3)


@pytest.mark.parametrize("eps", [1e-8, 1e-2])
def test_a_step_of_sgd_and_adam_as_torch_takes_it(eps: float, tmp_path: Path) -> None:
    made = Recorded(tmp_path, LAST, lambda p: SGD(p, lr=1e-6), experienced_adam(1e-7, eps=eps), steps=1)
    found = made.scores()
    assert found.provenance["same_as"] == "gradient_adam + gradient_dot"
    assert (found.units, found.coverage) == ("loss / learning rate", 1)
    np.testing.assert_allclose(
        made.predicted(found.scores), made.run.loss[0] - made.run.loss[1], rtol=1e-4, atol=1e-12
    )
    first, last = made.scores(parameters=made.of_first), made.scores(parameters=LAST)
    np.testing.assert_allclose(first.scores + last.scores, found.scores, rtol=1e-9)
    if eps == 1e-2:
        np.testing.assert_allclose(made.scores(eps=1e-2).scores, found.scores, rtol=1e-12)
        assert not np.allclose(made.scores(eps=1e-8).scores, found.scores, rtol=1e-3)


def test_momentum_is_that_of_each_optimizer(tmp_path: Path) -> None:
    """Relative to the run's rate, which is that of SGD with its momentum: it trained most parameters."""
    made = Recorded(tmp_path, LAST, lambda p: SGD(p, lr=1e-5, momentum=0.9), lambda p: AdamW(p, lr=1e-4))
    assert made.run.optimizer["class"] == "SGD"
    first = gradient_similarity(made.objective, made.data, made.data, parameters=made.of_first)
    last = adam_similarity(made.objective, made.data, made.data, batch=2, parameters=LAST)
    expected = first.scores + 10 * (1 - 0.9) * last.scores
    np.testing.assert_allclose(made.scores().scores, expected, rtol=1e-9)
    two = Recorded(
        tmp_path / "2",
        LAST,
        lambda p: SGD(p, lr=1e-5, momentum=0.5, dampening=0.5),
        lambda p: SGD(p, lr=1e-5),
    )
    assert two.checkpoints[3].rates == {}  # a gradient adds as much to all steps of the first as of the other
    three = Recorded(
        tmp_path / "3", LAST, lambda p: SGD(p, lr=1e-5), lambda p: SGD(p, lr=1e-5, momentum=0.75)
    )
    assert three.checkpoints[3].rates["3.weight"] == pytest.approx(4e-5)
    assert relative_rates(three.run)["3.weight"] == pytest.approx(4)


def test_tracin_takes_adams_metric_where_adam_trained(tmp_path: Path) -> None:
    made = Recorded(tmp_path, LAST, lambda p: SGD(p, lr=1e-3), lambda p: AdamW(p, lr=1e-4, eps=1e-3))
    arguments = (made.objective, made.data, made.data, made.checkpoints[:2])
    with pytest.raises(ValueError, match=r"SGD and AdamW trained different .*: give adam_batch=, for Adam's"):
        tracin(*arguments)
    kept = {"adam_batch": 2, "folder": tmp_path / "kept"}
    found = tracin(*arguments, **kept)
    expected = np.zeros((4, 4))
    for checkpoint in made.checkpoints[:2]:
        with checkpoint.loaded(made.objective.module):
            of = (made.objective, made.data, made.data)
            expected += 1e-3 * gradient_similarity(*of, parameters=made.of_first).scores
            expected += 1e-4 * adam_similarity(*of, batch=2, eps=1e-3, parameters=LAST).scores
    np.testing.assert_allclose(found.scores, expected, rtol=1e-9)
    np.testing.assert_array_equal(tracin(*arguments, **kept).scores, found.scores)
    other = [
        replace(one, optimizer={**one.optimizer, "groups": [
            {**group, "eps": 1e-8} for group in one.optimizer["groups"]
        ]}) for one in made.checkpoints[:2]
    ]  # fmt: skip
    with pytest.raises(RunDataError, match="other weights or examples"):
        tracin(*arguments[:3], other, **kept)
    alone = tracin(*arguments, parameters=made.of_first)  # of one optimizer
    assert alone.covers == tuple(made.of_first)


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="torch has Muon since 2.9")
@pytest.mark.parametrize("of_muon", [MATRICES, ["0.weight"]])
def test_what_muon_trained_is_refused_and_adams_part_is_not(of_muon: list[str], tmp_path: Path) -> None:
    """Whichever of the two trained more parameters, and so stands for the run."""
    made = Recorded(
        tmp_path, of_muon, lambda p: AdamW(p, lr=1e-4), lambda p: torch.optim.Muon(p, lr=1e-3, momentum=0.95)
    )
    main = "Muon" if of_muon == MATRICES else "AdamW"
    assert made.run.optimizer["class"] == main
    with pytest.raises(ValueError, match=r"Muon trained 0\.weight.*name with parameters= those that Adam"):
        made.scores()
    arguments = (made.objective, made.data, made.data, made.checkpoints)
    for adam_batch in (None, 2):
        with pytest.raises(
            ValueError, match=r"trained different parameters .*name with parameters= those of"
        ):
            tracin(*arguments, adam_batch=adam_batch)
    found = made.scores(parameters=made.of_first)
    expected = adam_similarity(*arguments[:3], batch=2, parameters=made.of_first).scores
    relative = 0.1 if main == "Muon" else 1.0
    np.testing.assert_allclose(found.scores, relative * expected, rtol=1e-9)
    assert found.coverage < 1
    tracin(*arguments, adam_batch=2, parameters=made.of_first)
    tracin(*arguments, parameters=of_muon)  # as published, with its own rates
    made.scores("gradient_dot")


def test_adams_of_several_kinds_are_alike(tmp_path: Path) -> None:
    made = Recorded(tmp_path, LAST, lambda p: torch.optim.NAdam(p, lr=1e-4), lambda p: AdamW(p, lr=1e-4))
    expected = adam_similarity(made.objective, made.data, made.data, batch=2).scores
    np.testing.assert_allclose(made.scores().scores, expected, rtol=1e-12)
    assert adam_eps(made.run.optimizer, [*made.of_first, *LAST]) == 1e-8
    tracin(made.objective, made.data, made.data, made.checkpoints)


def test_rates_that_are_not_known_are_refused(tmp_path: Path) -> None:
    made = Recorded(tmp_path, LAST, lambda p: SGD(p, lr=1e-5), lambda p: SGD(p, lr=1e-4))
    unknown = np.full_like(made.run.group_rates, np.nan)
    for run in (
        replace(made.run, group_rates=unknown),
        replace(made.run, learning_rate=0 * made.run.learning_rate),
    ):
        with pytest.raises(RunDataError, match="not all known, or the main one of them was never trained"):
            relative_rates(run)


def test_optimizers_of_parameters_without_names_are_refused() -> None:
    """The loss function's model was no torch module, so that nothing is known of its parameters."""
    groups = [{"parameters": [], "other_parameters": 2, "lr": 0.1, "class": name} for name in ("SGD", "Adam")]
    with pytest.raises(RunDataError, match=r"different class, \['SGD', 'Adam'\], and the recording does not"):
        optimizers_of({"class": "SGD", "lr": 0.1, "groups": groups}, ["0.weight"])
    assert optimizers_of({"class": "torch.optim.SGD"}, ["0.weight"]) == {"SGD": ["0.weight"]}
