"""Attribution's standards against known answers and naive loops."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import spearmanr
from sklearn.metrics import roc_auc_score

from simfluence.evaluation.standards import (
    agreement,
    auc,
    brittleness,
    ceiling,
    lds,
    leave_one_out_correlation,
    mean_with_interval,
    random_subsets,
    recall_at_k,
    reciprocal_rank,
    removal_curve,
    top_examples,
)


@pytest.fixture
def additive() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Effects [train, test], subsets, and losses that are exactly a base less the effects of what is kept."""
    rng = np.random.default_rng(0)
    effects = rng.normal(size=(30, 6))
    kept = random_subsets(30, 0.5, 200)
    return effects, kept, rng.normal(size=6) - kept @ effects


# -------------------------------------------------------------------------------------------- LDS


def test_lds_of_the_true_effects_of_an_additive_model_is_1(additive) -> None:
    effects, kept, losses = additive
    np.testing.assert_allclose(lds(effects, kept, losses), 1)
    np.testing.assert_allclose(lds(-effects, kept, losses), -1)
    np.testing.assert_allclose(lds(7 * effects + 0.3, kept, losses), 1)  # subsets are of one size


def test_lds_of_random_scores_is_about_0(additive) -> None:
    _, kept, losses = additive
    rng = np.random.default_rng(1)
    found = [lds(rng.normal(size=(30, 6)), kept, losses).mean() for _ in range(50)]
    assert abs(np.mean(found)) < 0.05
    assert np.std(found) > 0.01


def test_lds_of_noisy_scores_lies_between(additive) -> None:
    effects, kept, losses = additive
    noisy = effects + np.random.default_rng(2).normal(size=effects.shape)
    assert 0.5 < lds(noisy, kept, losses).mean() < 0.85  # correlation of effects with noisy ones: 0.71


def test_lds_is_the_naive_loop(additive) -> None:
    _, kept, _ = additive
    rng = np.random.default_rng(3)
    scores, losses = rng.normal(size=(30, 6)), rng.normal(size=(200, 6))
    for z, found in enumerate(lds(scores, kept, losses)):
        sums = [sum(scores[i, z] for i in range(30) if kept[s, i]) for s in range(200)]
        assert found == pytest.approx(spearmanr(sums, [-losses[s, z] for s in range(200)]).statistic)


def test_lds_of_scores_that_are_all_alike_is_not_known(additive) -> None:
    _, kept, losses = additive
    assert np.isnan(lds(np.zeros((30, 6)), kept, losses)).all()


def test_lds_says_which_shape_it_expects(additive) -> None:
    effects, kept, losses = additive
    with pytest.raises(ValueError, match=r"\[train, test\] = \[30, 6\], got shape \(6, 30\)"):
        lds(effects.T, kept, losses)
    with pytest.raises(ValueError, match="must be finite"):
        lds(np.full((30, 6), np.nan), kept, losses)
    with pytest.raises(ValueError, match="kept has 199 subsets, losses have 200"):
        lds(effects, kept[1:], losses)


# ---------------------------------------------------------------------------------- between seeds


def test_perfect_scores_reach_the_ceiling() -> None:
    """Losses of three seeds: the same effects, and noise of a seed's own."""
    rng = np.random.default_rng(0)
    kept = random_subsets(40, 0.5, 2000)
    effects = rng.normal(size=(40, 3))
    losses = -(kept @ effects)[:, None] + 3 * rng.normal(size=(2000, 3, 3))
    reached = lds(effects, kept, losses.mean(1))
    np.testing.assert_allclose(ceiling(agreement(losses), 3), reached, atol=0.05)
    single = lds(effects, kept, losses[:, 0])
    np.testing.assert_allclose(ceiling(agreement(losses), 1), single, atol=0.05)


def test_agreement_is_between_seeds() -> None:
    with pytest.raises(ValueError, match="expected two or more, got 1"):
        agreement(np.zeros((5, 1, 2)))


def test_intervals_hold_the_true_mean_as_often_as_they_say() -> None:
    rng = np.random.default_rng(0)
    held = 0
    for _ in range(300):
        mean, low, high, n = mean_with_interval(rng.normal(1, 1, 40), level=0.9, resamples=300)
        assert low < mean < high
        assert n == 40
        held += low <= 1 <= high
    assert 0.83 < held / 300 < 0.95


def test_what_is_not_known_is_left_out_of_a_mean() -> None:
    found = mean_with_interval([1.0, np.nan, 3.0])
    assert (found.mean, found.n) == (2, 2)
    assert mean_with_interval([np.nan]).n == 0
    assert np.isnan(mean_with_interval([2.0, 3.0]).low)  # too few for an interval
    assert mean_with_interval([1.0, 2, 3, 4, 5]).low < 3


# ------------------------------------------------------------------------------------ removing


def test_the_top_examples_have_the_highest_scores() -> None:
    scores = np.array([3.0, 9, 1, 9, 5, 0, 0, 0, 0, 0])
    assert top_examples(scores, 0.3).tolist() == [1, 3, 4]
    assert top_examples(scores, 0.01).tolist() == [1]
    with pytest.raises(ValueError, match="share"):
        top_examples(scores, 1)


def test_a_removal_curve_is_the_rise_over_random_removals() -> None:
    rng = np.random.default_rng(0)
    removed, random = rng.normal(size=(3, 4)), rng.normal(size=(3, 5, 4))
    found = removal_curve(removed, random)
    for share in range(3):
        for z in range(4):
            mean = sum(random[share, draw, z] for draw in range(5)) / 5
            assert found[share, z] == pytest.approx(removed[share, z] - mean)
    with pytest.raises(ValueError, match="draw"):
        removal_curve(removed, random[:, 0])


def test_only_right_answers_can_flip() -> None:
    found = brittleness(np.array([True, True, False, False]), np.array([True, False, True, False]))
    np.testing.assert_array_equal(found, [0, 1, np.nan, np.nan])


def test_leave_one_out_correlation_of_the_true_effects_is_1(additive) -> None:
    effects, _, _ = additive
    left_out, whole = np.array([3, 7, 8, 20]), np.ones(6)
    losses = whole + effects[left_out]  # the loss rises by what the example took off it
    np.testing.assert_allclose(leave_one_out_correlation(effects, left_out, losses, whole), 1)
    np.testing.assert_allclose(leave_one_out_correlation(-effects, left_out, losses, whole), -1)
    rng = np.random.default_rng(0)
    losses = rng.normal(size=(4, 6))
    for z, found in enumerate(leave_one_out_correlation(effects, left_out, losses, whole)):
        assert found == pytest.approx(spearmanr(effects[left_out, z], losses[:, z] - 1).statistic)


# ------------------------------------------------------------------------- known and planted ones


def test_retrieval_is_the_naive_loop() -> None:
    rng = np.random.default_rng(0)
    scores, relevant = rng.normal(size=(20, 7)), rng.random((20, 7)) < 0.2
    relevant[:, 0], relevant[4, 0] = False, True
    recall, rank = recall_at_k(scores, relevant, 5), reciprocal_rank(scores, relevant)
    for z in range(7):
        order = sorted(range(20), key=lambda i: -scores[i, z])
        of = [i for i in range(20) if relevant[i, z]]
        assert recall[z] == pytest.approx(len(set(order[:5]) & set(of)) / len(of))
        assert rank[z] == pytest.approx(1 / (1 + min(order.index(i) for i in of)))


def test_equal_scores_count_against_a_method() -> None:
    relevant = np.array([[True], [False], [False], [False]])
    assert reciprocal_rank(np.zeros((4, 1)), relevant)[0] == 0.25
    assert recall_at_k(np.zeros((4, 1)), relevant, 3)[0] == 0
    assert recall_at_k(np.zeros((4, 1)), relevant, 4)[0] == 1


def test_without_relevant_examples_nothing_is_known() -> None:
    none = np.zeros((4, 1), bool)
    assert np.isnan(recall_at_k(np.ones((4, 1)), none, 2)[0])
    assert np.isnan(reciprocal_rank(np.ones((4, 1)), none)[0])


def test_auc_is_the_chance_of_the_right_order() -> None:
    rng = np.random.default_rng(0)
    planted = np.arange(30) < 8
    suspicion = rng.normal(size=30) + planted
    pairs = [suspicion[i] > suspicion[j] for i in range(8) for j in range(8, 30)]
    assert auc(suspicion, planted) == pytest.approx(np.mean(pairs))
    assert auc(suspicion, planted) == roc_auc_score(planted, suspicion)
    with pytest.raises(ValueError, match="got 0 of 30"):
        auc(suspicion, np.zeros(30, bool))
