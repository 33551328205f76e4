"""Adapters over frozen, quantised weights (QLoRA): in buffers, in integer parameters, and bitsandbytes'."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from safetensors import safe_open
from tiny import TEST, TRAIN, per_example
from torch import nn

from simfluence.attribution import AttributionContext, Checkpoint, LossesOnly, attribute
from simfluence.attribution.gradients import gradient_similarity
from simfluence.attribution.store import stored_scores
from simfluence.attribution.store_writing import write_store
from simfluence.recording import RunRecorder, load_weights
from simfluence.recording.fingerprint import weights_fingerprint
from simfluence.recording.weights import weights_file
from simfluence.runs import ExampleTable, RunSet, TableFingerprints

pytestmark = pytest.mark.filterwarnings("ignore:.*pin_memory.*:UserWarning")


def quantised(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Eight bits a number, and a scale for each row."""
    scale = weight.abs().amax(1, keepdim=True) / 127
    return (weight / scale).round().to(torch.int8), scale


class InBuffers(nn.Module):
    """A linear map whose weight is no parameter."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        weight, scale = quantised(linear.weight.detach())
        self.register_buffer("weight", weight)
        self.register_buffer("scale", scale)
        self.bias = nn.Parameter(linear.bias.detach().clone(), requires_grad=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.linear(x, self.weight * self.scale, self.bias)


class InParameter(nn.Linear):
    """A linear map whose weight is a parameter of integers, as bitsandbytes has it."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__(linear.in_features, linear.out_features, bias=False)
        weight, scale = quantised(linear.weight.detach())
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.register_buffer("scale", scale)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.linear(x, self.weight * self.scale)


class Adapted(nn.Module):
    def __init__(self, base: nn.Module, inputs: int, outputs: int) -> None:
        super().__init__()
        self.base = base
        self.down, self.up = nn.Linear(inputs, 2, bias=False), nn.Linear(2, outputs, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.base(x) + self.up(self.down(x))


def new_model(seed: int = 0, base_seed: int = 0) -> nn.Module:
    torch.manual_seed(base_seed)
    first, second = (InBuffers(nn.Linear(*sizes)) for sizes in ((5, 40), (40, 3)))
    torch.manual_seed(seed)
    return nn.Sequential(Adapted(first, 5, 40), nn.Tanh(), Adapted(second, 40, 3))


def train(model: nn.Module, recorder: RunRecorder | None = None) -> None:
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.05)

    def one_step(step: int) -> list[str]:
        batch = TRAIN[4 * step :][:4]
        optimizer.zero_grad()
        per_example(model, batch).mean().backward()
        optimizer.step()
        return [example["id"] for example in batch]

    if recorder is None:
        for step in range(3):
            one_step(step)
        return
    with recorder.run("run", model=model, loss=per_example, optimizer=optimizer, keep_weights=[3]) as run:
        for step in range(3):
            run.step(one_step(step))


def test_weights_in_buffers(tmp_path):
    bare, model = new_model(), new_model()
    train(bare)
    train(model, RunRecorder(tmp_path / "set", TRAIN, TEST))
    for a, b in zip(bare.parameters(), model.parameters(), strict=True):
        assert torch.equal(a, b)
    run = RunSet.load(tmp_path / "set")[0]
    with torch.no_grad():
        np.testing.assert_allclose(run.loss[-1], per_example(model, TEST), rtol=1e-5)

    assert run.initial_weights == weights_fingerprint(new_model())
    assert run.initial_weights != weights_fingerprint(new_model(base_seed=1)), "other quantised weights"
    loaded = new_model(seed=1)
    load_weights(tmp_path / "set" / "run", 3, loaded)
    with torch.no_grad():
        np.testing.assert_allclose(run.loss[-1], per_example(loaded, TEST), rtol=1e-5)
    with safe_open(weights_file(tmp_path / "set" / "run", 3), "pt") as file:
        assert not {"0.base.weight", "2.base.weight"} & set(file.keys())


def naive_products(model: nn.Module, losses, train: list, test: list) -> np.ndarray:
    """Inner products of gradients, one example at a time."""
    parameters = [p for p in model.parameters() if p.requires_grad]

    def gradient(example) -> torch.Tensor:
        found = torch.autograd.grad(losses([example]).sum(), parameters)
        return torch.cat([one.flatten() for one in found])

    return np.array([[float(gradient(i) @ gradient(z)) for z in test] for i in train])


def test_gradients_over_weights_in_buffers(tmp_path):
    model = new_model()
    objective = LossesOnly(model, lambda examples: per_example(model, examples))
    scores = gradient_similarity(objective, TRAIN[:4], TEST[:3])
    expected = naive_products(model, objective.losses, TRAIN[:4], TEST[:3])
    np.testing.assert_allclose(scores.scores, expected, rtol=1e-4, atol=1e-6)
    assert scores.coverage == 1.0  # of what is trained
    assert set(scores.covers) == {name for name, _ in model.named_parameters() if "base" not in name}

    adam = {"class": "AdamW", "lr": 0.05, "eps": 1e-8}
    context = AttributionContext(
        objective, TRAIN[:8], TEST[:3], [""] * 8, [""] * 3,
        [Checkpoint(0, 0.05, lambda module: None, optimizer=adam)], str.split, batch=4, optimizer=adam,
        tables=TableFingerprints.of(ExampleTable.of(TRAIN[:8]), ExampleTable.of(TEST[:3])),
    )  # fmt: skip
    steps = attribute(context, "gradient_step")
    assert steps.coverage == 1.0
    assert "(100% of the numbers that are trained)" in write_store(context, tmp_path, k=1024, landmarks=0)
    stored = stored_scores(context, tmp_path).scores
    np.testing.assert_allclose(stored, steps.scores, atol=2e-3 * np.abs(steps.scores).max())


def test_a_loss_without_gradients_is_refused():
    model = new_model()

    def cut_off(examples: list[dict]) -> torch.Tensor:
        return per_example(lambda x: model(x).detach(), examples)

    with pytest.raises(ValueError, match="no gradient with respect to any of the chosen parameters"):
        gradient_similarity(LossesOnly(model, cut_off), TRAIN[:4], TEST[:3])


def language_model(path, in_four_bits: bool):
    """A small Llama with a LoRA adapter over quantised weights."""
    transformers, peft = pytest.importorskip("transformers"), pytest.importorskip("peft")
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=32, max_position_embeddings=32, hidden_size=64, intermediate_size=64,
        num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=2,
    )  # fmt: skip
    model = transformers.LlamaForCausalLM(config)
    if in_four_bits:
        if not path.exists():
            model.save_pretrained(path)
        four_bits = transformers.BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32
        )
        model = transformers.LlamaForCausalLM.from_pretrained(
            path, quantization_config=four_bits, device_map={"": "cpu"}
        )
    else:
        for layer in model.model.layers:
            for name in ("q_proj", "v_proj", "o_proj"):
                setattr(layer.self_attn, name, InParameter(getattr(layer.self_attn, name)))
    torch.manual_seed(1)
    adapter = peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    return peft.get_peft_model(model, adapter)


@pytest.mark.parametrize("in_four_bits", [False, True], ids=["integers", "bitsandbytes"])
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_an_adapter_of_peft_in_a_trainer(tmp_path, in_four_bits):
    """Gradients go through the quantised weights after evaluations too."""
    if in_four_bits:
        pytest.importorskip("bitsandbytes")
    pytest.importorskip("datasets")
    pytest.importorskip("transformers")
    from test_trainer import collate, features, new_trainer, weights

    from simfluence.recording.losses import model_loss
    from simfluence.recording.trainer import record_trainer

    train, test = features(12, 0, "gpt2"), features(5, 1, "gpt2")
    trainers = []
    for folder in ("bare", "recorded"):
        trainers.append(new_trainer(tmp_path / folder, "gpt2", train=train, max_steps=3))
        trainers[-1].model = trainers[-1].model_wrapped = language_model(tmp_path / "model", in_four_bits)
    bare, trainer = trainers
    bare.train()
    recorder = RunRecorder(tmp_path / "set", train, test, batch_size=2)
    record_trainer(trainer, recorder, "seed-0", keep_weights=1)
    trainer.train()
    assert weights(trainer) == weights(bare)

    model, loss = language_model(tmp_path / "model", in_four_bits), model_loss(collate)
    assert RunSet.load(tmp_path / "set")[0].initial_weights == weights_fingerprint(model)
    load_weights(tmp_path / "set" / "seed-0", 3, model)
    with safe_open(weights_file(tmp_path / "set" / "seed-0", 3), "pt") as file:
        assert [name for name in file.keys() if "weight" in name and "lora_" not in name] == []  # noqa: SIM118

    losses = lambda examples: loss(model, list(examples))["loss"]  # noqa: E731
    expected = naive_products(model.train(), losses, train[:4], test)
    found = gradient_similarity(LossesOnly(model, losses), train[:4], test)
    np.testing.assert_allclose(found.scores, expected, rtol=1e-3, atol=1e-3 * abs(expected).max())
    assert found.coverage == 1.0
    with pytest.raises(ValueError, match=r"holds whole numbers .*'\*lora_\*'"):
        gradient_similarity(LossesOnly(model, losses), train[:4], test, parameters=["*q_proj*"])
