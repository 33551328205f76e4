"""Models in wrappers, and weights that were frozen later on: what is kept loads into the plain model."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tiny import TEST, TRAIN, bits, new_model, per_example
from torch import nn

from simfluence.recording import RunRecorder, load_weights
from simfluence.runs import RunSet


@pytest.fixture
def recorder(tmp_path):
    return RunRecorder(tmp_path / "set", TRAIN, TEST)


def compiled(model):
    return torch.compile(model, backend="eager")


def partly_compiled(model):
    model[0] = compiled(model[0])
    return model


WRAPPERS = [
    compiled,
    partly_compiled,
    nn.DataParallel,
    lambda model: nn.DataParallel(compiled(model)),
    lambda model: compiled(nn.DataParallel(model)),
]


@pytest.mark.parametrize("wrap", WRAPPERS, ids=["compiled", "partly", "parallel", "both", "both, inside out"])
def test_weights_and_names_are_those_of_the_plain_model(recorder, wrap):
    model = wrap(new_model())
    groups = [{"params": [p]} for p in model.parameters()]
    groups[0]["lr"] = 0.2
    optimizer = torch.optim.SGD(groups, lr=0.1)
    with recorder.run("run", model=model, loss=per_example, optimizer=optimizer, keep_weights=[1]) as run:
        per_example(model.train(), TRAIN[:4]).mean().backward()
        optimizer.step()
        run.step([example["id"] for example in TRAIN[:4]])
        assert model.training
    plain = new_model(seed=3)
    load_weights(recorder.path / "run", 1, plain)
    recorded = RunSet.load(recorder.path)[0]
    with torch.no_grad():
        np.testing.assert_allclose(per_example(plain.eval(), TEST), recorded.loss[1], rtol=1e-5)
    names = [group["parameters"][0] for group in recorded.optimizer["groups"]]
    assert names == [name for name, _ in new_model().named_parameters()]
    again = wrap(new_model(seed=4))
    load_weights(recorder.path / "run", 1, again)
    assert bits(again) == bits(plain)


def test_weights_of_a_compiled_model_from_before_load_too(recorder):
    """They were kept under the names of torch.compile's wrapper."""
    from simfluence.recording.weights import save_weights

    model = compiled(new_model())
    save_weights(recorder.path / "old", 3, model.state_dict())
    plain = new_model(seed=3)
    load_weights(recorder.path / "old", 3, plain)
    assert bits(plain) == bits(model)


def test_what_was_trained_and_frozen_later_is_kept_with_later_weights(recorder):
    """Most of the model never trains; its middle does for two steps, the head always; then a restart."""

    def model_of(seed):
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Linear(5, 90), nn.Tanh(), nn.Linear(90, 4), nn.Linear(4, 3))
        model[0].requires_grad_(False)
        return model

    def train(model, stop_after=None, **options):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        with recorder.run(
            "run", model=model, loss=per_example, optimizer=optimizer, keep_weights=[3, 5], resume_every=3,
            resume=True, **options,
        ) as run:  # fmt: skip
            for number in range(run.start, 5):
                if number == stop_after:
                    raise KeyboardInterrupt
                model[2].requires_grad_(number < 2)
                optimizer.zero_grad()
                per_example(model, TRAIN[4 * number :][:4]).mean().backward()
                optimizer.step()
                run.step([example["id"] for example in TRAIN[4 * number :][:4]])

    with pytest.raises(KeyboardInterrupt):
        train(model_of(0), stop_after=4)
    resumed = model_of(0)
    resumed[2].requires_grad_(False)
    train(resumed)
    run = RunSet.load(recorder.path)[0]
    for step in (3, 5):
        loaded = model_of(0)
        load_weights(recorder.path / "run", step, loaded)
        with torch.no_grad():
            np.testing.assert_allclose(per_example(loaded, TEST), run.loss[step], rtol=1e-5)
    file = recorder.path / "run" / "checkpoints" / "step-000005.safetensors"
    assert file.stat().st_size < 4 * (364 + 15) + 900  # not the frozen first layer, of 540 numbers


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")
def test_an_adapter_of_peft_in_a_trainers_collator_loss(tmp_path):
    """The loss function finds what the model inside takes; adapter weights load into another such model."""
    peft = pytest.importorskip("peft")
    pytest.importorskip("transformers")
    from test_trainer import collate, features
    from test_trainer import new_model as new_language_model

    from simfluence.recording.losses import model_loss

    def adapted(seed, wrap=lambda model: model):
        torch.manual_seed(seed)
        config = peft.LoraConfig(task_type="SEQ_CLS", r=2, target_modules=["query"], init_lora_weights=False)
        return wrap(peft.get_peft_model(new_language_model("bert"), config))

    examples = features(6, 0, "bert")
    set_of_bert = RunRecorder(tmp_path / "bert", examples, examples)
    loss = model_loss(collate)
    expected = None
    for number, wrap in enumerate([lambda model: model, compiled, nn.DataParallel]):
        model = adapted(0, wrap)
        optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
        with set_of_bert.run(
            f"run-{number}", model=model, loss=loss, optimizer=optimizer, keep_weights=[1]
        ) as run:
            loss(model.eval(), examples[:2])["loss"].mean().backward()
            optimizer.step()
            run.step([example["id"] for example in examples[:2]])
        assert isinstance(run.losses["loss"], np.ndarray)
        fresh = adapted(1)
        load_weights(tmp_path / "bert" / f"run-{number}", 1, fresh)
        with torch.no_grad():
            found = loss(fresh.eval(), examples)["loss"]
        np.testing.assert_allclose(found, run.losses["loss"], rtol=1e-4)
        expected = run.losses["loss"] if expected is None else expected
        np.testing.assert_allclose(run.losses["loss"], expected, rtol=1e-4)
