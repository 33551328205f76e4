"""TRL's DPOTrainer and RewardTrainer: losses of pairs against naive loops and the trainers' own."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

pytest.importorskip("trl", reason="TRL is not installed: pip install --no-deps trl")
datasets = pytest.importorskip("datasets")

from peft import LoraConfig, get_peft_model  # noqa: E402
from test_sft_trainer import LETTERS, SIZES, Seen, weights  # noqa: E402
from tiny_chat import save_model  # noqa: E402
from transformers import (  # noqa: E402
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
)
from trl import DPOConfig, DPOTrainer, RewardConfig, RewardTrainer  # noqa: E402

from simfluence.recording import RunRecorder  # noqa: E402
from simfluence.recording.preferences import preference_loss  # noqa: E402
from simfluence.recording.trainer import record_trainer  # noqa: E402
from simfluence.runs import RunSet  # noqa: E402
from simfluence.scores import INITIAL_SCORES, InfluenceScores  # noqa: E402

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*pin_memory.*:UserWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]
STEPS, N_TEST = 3, 5
ADAPTER = {"lora": True, "gradient_checkpointing": True}


def pairs(margins: bool = False) -> list[dict]:
    """Each pair is written in a letter of its own."""
    found = []
    for number, (letter, size) in enumerate(zip(LETTERS, SIZES.tolist(), strict=True)):
        pair = {"id": f"x-{letter}", "prompt": "?" * (1 + number % 3), "chosen": letter * size,
                "rejected": letter.lower() * (20 - size)}  # fmt: skip
        found.append(pair | ({"margin": 0.1 * number} if margins else {}))
    return found


def options_of(tmp_path, options: dict) -> dict:
    return {
        "output_dir": str(tmp_path / "out"), "max_steps": STEPS, "per_device_train_batch_size": 3,
        "learning_rate": 1e-2, "report_to": "none", "save_strategy": "no", "disable_tqdm": True,
        "use_cpu": True, "bf16": False, "logging_steps": 100, "gradient_checkpointing": False,
    } | options  # fmt: skip


def adapter(lora: bool, **more) -> LoraConfig | None:
    return LoraConfig(r=2, target_modules=["q_proj", "v_proj"], **more) if lora else None


def new_dpo(tmp_path, *, lora: bool = False, trained_adapter: bool = False, **options):
    folder = save_model(tmp_path / "model", "llama")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    if trained_adapter:
        torch.manual_seed(1)
        model = get_peft_model(model, adapter(True, init_lora_weights=False))
    dataset = datasets.Dataset.from_list(pairs())
    trainer = DPOTrainer(
        model,
        args=DPOConfig(**options_of(tmp_path, {"beta": 0.5} | options)),
        train_dataset=dataset,
        eval_dataset=dataset.select(range(N_TEST)),
        processing_class=tokenizer,
        peft_config=adapter(lora),
    )
    return trainer, Seen(trainer.model, tokenizer)


def new_reward(tmp_path, *, lora: bool = False, margins: bool = False, **options):
    folder = save_model(tmp_path / "model", "llama")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=1)
    dataset = datasets.Dataset.from_list(pairs(margins))
    trainer = RewardTrainer(
        model,
        args=RewardConfig(**options_of(tmp_path, options)),
        train_dataset=dataset,
        eval_dataset=dataset.select(range(N_TEST)),
        processing_class=tokenizer,
        peft_config=adapter(lora, task_type="SEQ_CLS"),
    )
    return trainer, Seen(trainer.model, tokenizer)


def recorded(tmp_path, trainer, **options):
    recorder = RunRecorder(tmp_path / "set", train=pairs(), test=trainer.eval_dataset, batch_size=2)
    record_trainer(trainer, recorder, "seed-0", **options)
    trainer.train()
    runs = RunSet.load(tmp_path / "set")
    assert (runs[0].status, len(runs[0])) == ("complete", STEPS)
    return runs


def check_ids(runs, seen: Seen, accumulated: int = 1) -> None:
    """Against the texts that the model was given: the chosen completions are in capitals. Where the model
    without its adapter is the reference, it is given each batch twice."""
    seen.batches = list(dict.fromkeys(map(tuple, seen.batches)))
    consumed = [[runs.train.ids[row] for row in batch] for batch in runs[0].curriculum]
    assert consumed == seen.ids(accumulated)


def own_loss(trainer, pair: dict) -> float:
    """The trainer's, of a batch of one."""
    trainer.model.eval()
    with torch.no_grad():
        return trainer.compute_loss(trainer.model, trainer.data_collator([pair])).item()


def log_probability(model, prompt: list[int], completion: list[int]) -> float:
    """Token after token."""
    total = 0.0
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([prompt + completion])).logits[0].double()
    for place, token in enumerate(completion, start=len(prompt)):
        total += logits[place - 1].log_softmax(0)[token].item()
    return total


def naive_dpo(policy, reference, pair: dict, beta: float) -> tuple[float, float]:
    """Loss and margin."""
    ratio = {}
    for side in ("chosen_ids", "rejected_ids"):
        ratio[side] = log_probability(policy, pair["prompt_ids"], pair[side])
        ratio[side] -= log_probability(reference, pair["prompt_ids"], pair[side])
    margin = beta * (ratio["chosen_ids"] - ratio["rejected_ids"])
    return math.log1p(math.exp(-margin)), margin


def first_model(tmp_path, trained_adapter: bool = False):
    model = AutoModelForCausalLM.from_pretrained(str(tmp_path / "model"))
    if trained_adapter:
        torch.manual_seed(1)
        model = get_peft_model(model, adapter(True, init_lora_weights=False))
    return model.eval()


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"gradient_accumulation_steps": 2, "per_device_train_batch_size": 2, "max_length": 16},
        {"precompute_ref_log_probs": True},
        ADAPTER,
        {"trained_adapter": True},
    ],
    ids=["plain", "accumulated", "precomputed", "lora", "trained-adapter"],
)
def test_dpo(tmp_path, options) -> None:
    bare, _ = new_dpo(tmp_path / "bare", **options)
    bare.train()
    trainer, seen = new_dpo(tmp_path, **options)
    trains = [p.requires_grad for p in trainer.model.parameters()]
    runs = recorded(tmp_path, trainer)
    assert weights(trainer) == weights(bare)
    assert [p.requires_grad for p in trainer.model.parameters()] == trains
    check_ids(runs, seen, options.get("gradient_accumulation_steps", 1))

    run = runs[0]
    np.testing.assert_allclose(run.loss[0], math.log(2), rtol=1e-5)  # before training it is the reference
    reference, policy = first_model(tmp_path, "trained_adapter" in options), trainer.model.eval()
    for z, pair in enumerate(trainer.eval_dataset):
        if "max_length" not in options:  # else completions are cut
            loss, margin = naive_dpo(policy, reference, pair, beta=0.5)
            assert run.loss[-1, z] == pytest.approx(loss, rel=1e-4)
            assert run.metrics["margin"][-1, z] == pytest.approx(margin, rel=1e-3, abs=1e-4)
            assert run.metrics["accuracy"][-1, z] == (margin > 0)
        assert run.loss[-1, z] == pytest.approx(own_loss(trainer, pair), rel=1e-4)
    assert np.ptp(run.loss[-1]) > 1e-3


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"margins": True, "center_rewards_coefficient": 0.1},
        {"gradient_accumulation_steps": 2, **ADAPTER},
    ],
    ids=["plain", "margins", "lora"],
)
def test_reward(tmp_path, options) -> None:
    bare, _ = new_reward(tmp_path / "bare", **options)
    bare.train()
    trainer, seen = new_reward(tmp_path, **options)
    runs = recorded(tmp_path, trainer)
    assert weights(trainer) == weights(bare)
    check_ids(runs, seen, options.get("gradient_accumulation_steps", 1))

    run, model = runs[0], trainer.model.eval()
    for z, pair in enumerate(trainer.eval_dataset):
        with torch.no_grad():
            chosen, rejected = (
                model(input_ids=torch.tensor([pair[side]])).logits.item()
                for side in ("chosen_ids", "rejected_ids")
            )
        margin = chosen - rejected
        loss = math.log1p(math.exp(pair.get("margin", 0) - margin))
        loss += options.get("center_rewards_coefficient", 0) * (chosen + rejected) ** 2
        assert run.loss[-1, z] == pytest.approx(loss, rel=1e-4)
        assert run.loss[-1, z] == pytest.approx(own_loss(trainer, pair), rel=1e-4)
        assert run.metrics["margin"][-1, z] == pytest.approx(margin, rel=1e-3, abs=1e-5)
        assert run.metrics["accuracy"][-1, z] == (margin > 0)
    assert np.ptp(run.loss[-1]) > 1e-3


@pytest.mark.parametrize(("new", "options"), [(new_dpo, {}), (new_dpo, ADAPTER), (new_reward, {})])
def test_in_bfloat16(tmp_path, new, options) -> None:
    """Pairs are evaluated as they are trained on, under autocast."""
    bare, _ = new(tmp_path / "bare", bf16=True, **options)
    bare.train()
    trainer, _ = new(tmp_path, bf16=True, **options)
    run = recorded(tmp_path, trainer)[0]
    assert weights(trainer) == weights(bare)
    own = [own_loss(trainer, pair) for pair in trainer.eval_dataset]
    np.testing.assert_allclose(run.loss[-1], own, rtol=1e-3)


def test_the_reference_is_computed_once(tmp_path) -> None:
    trainer, _ = new_dpo(tmp_path)
    calls = []
    trainer.ref_model.register_forward_pre_hook(lambda *_: calls.append(trainer.model.training))
    recorded(tmp_path, trainer)
    assert calls.count(False) == 3  # batches of two: once for each, in evaluation
    assert calls.count(True) == STEPS


@pytest.mark.parametrize("lora", [False, True])
def test_scores_of_pairs_before_training(tmp_path, lora) -> None:
    trainer, _ = new_dpo(tmp_path, lora=lora)
    recorded(tmp_path, trainer, scores=True)
    scores = InfluenceScores.load(tmp_path / "set" / INITIAL_SCORES)
    assert scores.scores.shape == (len(LETTERS), N_TEST)
    assert (np.diag(scores.scores[:N_TEST]) > 0).all()  # each test pair was trained on
    assert "gradients" not in scores.provenance  # which were those of whole batches


def test_losses_that_are_not_known_are_refused(tmp_path) -> None:
    hinge, _ = new_dpo(tmp_path, loss_type=["hinge"])
    with pytest.raises(ValueError, match=r"known for loss_type=\['sigmoid'\].*\['hinge'\].*pass loss="):
        preference_loss(hinge)
    recorded(tmp_path, hinge, loss=lambda model, some: torch.zeros(len(some)))  # the user's own

    trainer, _ = new_dpo(tmp_path / "precomputed", precompute_ref_log_probs=True)
    loss, pair = preference_loss(trainer), dict(trainer.eval_dataset[0])
    with pytest.raises(ValueError, match=r"no tokens in 'chosen_ids'.*test=trainer.eval_dataset"):
        loss(trainer.model, pairs()[:1])
    del pair["ref_chosen_logps"], pair["ref_rejected_logps"]
    with pytest.raises(ValueError, match="no log-probabilities of the reference"):
        loss(trainer.model, [pair])
