"""What an edit keeps of a recorded run's residual, against the definition and known residuals."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from families import synthetic_runs
from hypothesis import given, settings
from hypothesis import strategies as st

from simfluence import Curriculum, RunSet, what_if
from simfluence import curriculum as edits
from simfluence.residual import KEPT, RECENT, carried, kept_share
from simfluence.simulators import MeanTrajectory


def curriculum_of(rng: np.random.Generator, steps: int = 40, n: int = 12) -> Curriculum:
    return Curriculum.from_batches(
        rng.integers(0, n // 2, (steps, 3)), n
    )  # half of the examples are not used


def naive_share(original: Curriculum, edited: Curriculum, rates: tuple[np.ndarray, np.ndarray]) -> float:
    """After the last step, by loops."""
    found = 0.0
    for memory in (np.inf, max(RECENT * len(original), 1)):
        exposures = []
        for curriculum, own in zip((original, edited), rates, strict=True):
            exposure = np.zeros(curriculum.n_examples)
            for step, batch in enumerate(curriculum, start=1):
                for example in batch:
                    weight = np.exp(-(len(curriculum) - step) / memory)
                    exposure[example] += weight * own[step - 1] / len(batch)
            exposures.append(exposure)
        of_original, of_edited = exposures - exposures[0].mean()
        found += np.clip(of_edited @ of_original / (of_original @ of_original), 0, 1) / 2
    return KEPT * found


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000), kind=st.sampled_from(["remove", "repeat", "shuffle", "late"]))
def test_the_share_is_the_definition(seed: int, kind: str) -> None:
    rng = np.random.default_rng(seed)
    original = curriculum_of(rng)
    edited = {
        "remove": lambda: edits.remove(original, [0, 1]),
        "repeat": lambda: edits.repeat(original, [2], 3, rng=rng),
        "shuffle": lambda: edits.shuffle(original, rng),
        "late": lambda: Curriculum.from_batches([*list(original)[:30], *[[7, 8, 9]] * 10], 12),
    }[kind]()
    rates = rng.uniform(0.5, 1, len(original)), rng.uniform(0.5, 1, len(edited))
    counterpart, share = kept_share(original, edited, rates)
    assert share[-1] == pytest.approx(naive_share(original, edited, rates))
    assert (share >= 0).all()
    assert (share <= 1).all()
    assert (np.diff(counterpart) >= 0).all()
    assert counterpart[[0, -1]].tolist() == [0, len(original)]


def test_up_to_the_first_difference_the_recorded_run_stays() -> None:
    runs, *_ = synthetic_runs(n_runs=12, noise=0.05)
    base = runs[11]
    simulator = MeanTrajectory().fit(runs[:10])
    edited = Curriculum.from_batches(list(base.curriculum)[:20] + list(runs[0].curriculum)[20:], 12)
    answer = what_if(simulator, base, edited)
    np.testing.assert_allclose(answer.before, base.loss, atol=1e-6)
    np.testing.assert_allclose(answer.after[:21], base.loss[:21], atol=1e-6)
    assert answer.kept is not None
    assert 0.2 < answer.kept < KEPT
    assert f"as recorded; {answer.kept:.0%} of what its simulation misses is kept" in str(answer)


def test_nothing_is_kept_where_every_example_is_used_alike() -> None:
    original = curriculum_of(np.random.default_rng(1))
    uniform = Curriculum.from_batches([range(12)] * 40, 12)
    assert kept_share(original, uniform)[1][-1] == pytest.approx(0, abs=1e-12)


def test_an_edit_of_mean_trajectories_is_what_is_not_kept() -> None:
    """The mean trajectory sees no curriculum; what a run differs from it by, an edit loses in part."""
    runs, *_ = synthetic_runs(n_runs=12)
    simulator = MeanTrajectory().fit(runs[:10])
    answer = what_if(simulator, runs[11], runs[10].curriculum)
    missed = runs[11].loss[-1] - simulator.simulate([runs[11].curriculum], runs[11].loss[0])[0, -1]
    np.testing.assert_allclose(answer.changes["change"], -(1 - answer.kept) * missed, atol=1e-6)
    np.testing.assert_allclose(answer.changes["original"], runs[11].loss[-1], atol=1e-6)


def test_sparse_and_missing_losses() -> None:
    runs, *_ = synthetic_runs(n_runs=3)
    run = runs[0]
    at = np.array([0, 10, 25, 30])
    losses = run.loss[at].copy()
    losses[2, 1], losses[:, 2] = np.nan, np.nan
    few = dataclasses.replace(run, metrics={"loss": losses}, evaluated=at)
    simulated = np.ones((31, 4))
    found = carried(few, runs[1].curriculum, simulated)
    np.testing.assert_allclose(found.residual[at, 0], losses[:, 0] - 1)
    np.testing.assert_allclose(found.residual[5, 0], found.residual[[0, 10], 0].mean())
    np.testing.assert_allclose(found.residual[20, 1], found.residual[[10, 30], 1].mean())
    assert (found.residual[:, 2] == 0).all()


def test_runs_on_mixtures_keep_theirs() -> None:
    rng = np.random.default_rng(0)
    shares = rng.dirichlet(np.ones(3), (4, 20))
    curricula = [Curriculum.from_shares(own) for own in shares]
    runs = RunSet.from_arrays(curricula, rng.uniform(1, 2, (4, 21, 2)), train=3)
    edited = edits.Curriculum.from_shares(np.concatenate([shares[0][:10], shares[1][10:]]))
    found = carried(runs[0], edited, np.ones((21, 2)))
    np.testing.assert_allclose(found.carried[:11], runs[0].loss[:11] - 1)
    assert 0 < found.kept < KEPT
