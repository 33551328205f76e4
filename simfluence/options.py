"""The options of the command line: which there are, what type each has, and what is wrong with those given.

hydra composes them from conf/. The type of an option is that of its default there; where the default is null,
it stands in ``TYPES``.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import hydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import BooleanNode, DictConfig, FloatNode, IntegerNode, OmegaConf, StringNode
from omegaconf.errors import OmegaConfBaseException

from simfluence import renamed

Type = type | None
"""bool, int, float or str; list for texts, tuple for numbers; None for an option of several types."""


class Option(NamedTuple):
    """The type of an option, and whether it may be null."""

    type: Type
    nullable: bool


_TYPED = ("prompt", "completion", "text", "premise", "hypothesis", "context", "question", "label")
"""The fields of an example that may be typed in."""

TYPES: dict[str, Type] = {
    **dict.fromkeys(("number", "processes", "test", "seed", "times", "window", "attribute.only"), int),
    **dict.fromkeys(("whatif.steps", "shard_rows", "landmarks", "wait", "gradients.batch_size"), int),
    **dict.fromkeys(("shard", "store", "new"), str),
    **dict.fromkeys(("first_label", "layers", "adam_batch", "batch", "rank", "keep_every"), int),
    **dict.fromkeys(("penalty", "momentum", "damping", "b", "dropout", "floor", "recency"), float),
    **dict.fromkeys(("evaluate_within", "evaluate_subset"), float),
    **dict.fromkeys(("device", "run_id", "output", "plot", "fitted", "experiment"), str),
    **dict.fromkeys(("test_path", "split", "test_split", "archive", "kernel", "link", "kind"), str),
    **dict.fromkeys(("shares", "title"), str),
    **dict.fromkeys(("only", "test_ids", "prune", "labels", "targets", "parameters", "scores"), list),
    **dict.fromkeys(("class_words",), list),
    **dict.fromkeys(("rank.of", "groups.of", "interactions.of", "when.of"), str),
    **dict.fromkeys((f"example.{field}" for field in _TYPED), str),
    "example.choices": list,
    "first_order": bool,
    **dict.fromkeys(("interactions.among", "when.groups"), list),
    **dict.fromkeys(("steps", "keep_weights"), None),
    **dict.fromkeys(("edit.steps", "edit.count", "budget"), int),
    **dict.fromkeys(("above", "below"), float),
    **dict.fromkeys(("file", "of", "curricula", "next_runs.only", "edit.scores", "edit.text"), str),
}
"""The types of options whose default is null, by name, by command and name, or by key."""

NULLABLE = ("level", "factors", "dropout", "link", "config", "n_test", "size_examples")
"""Options that may be null, though their default is not."""

_NODES: dict[Type, tuple[Any, str]] = {
    str: (StringNode, "one text"),
    int: (IntegerNode, "a whole number"),
    float: (FloatNode, "a number"),
    bool: (BooleanNode, "true or false"),
}
_WHOLE_TEXTS = ("edit.shares", "edit.text", "title", *(f"example.{field}" for field in _TYPED))
"""Options of which blanks and commas are part of one text."""
_LIST_ITEM = re.compile(r"((?:^\[?|,)\s*)([^\s,\[\](){}'\"\\$]+)(?=\s*(?:\]?$|,))")
"""An item of a list, or a value of its own: without blanks, quotes, brackets and interpolations."""


# ---------------------------------------------------------------------------------------- what there is


def conf_folder() -> Path:
    """conf/ as it was installed with the package, or as it lies in a checkout."""
    here = Path(__file__).resolve().parent
    return here / "conf" if (here / "conf").is_dir() else here.parent / "conf"


def compose(command: str, overrides: Sequence[str] = ()) -> DictConfig:
    with hydra.initialize_config_dir(str(conf_folder()), version_base="1.3"):
        return hydra.compose(command, list(overrides))


def groups_of(command: str) -> dict[str, list[str]]:
    """The groups of conf/ that a command chooses one of, and their choices."""
    defaults = OmegaConf.select(OmegaConf.load(conf_folder() / f"{command}.yaml"), "defaults")
    names = [str(key) for entry in defaults if not isinstance(entry, str) for key in entry]
    return {
        name: sorted(file.stem for file in (conf_folder() / name).glob("*.yaml"))
        for name in names
        if (conf_folder() / name).is_dir()
    }


@lru_cache
def options_of(command: str) -> dict[str, Option]:
    """Every option of a command, with those of every choice of its groups."""
    groups = [group for group in groups_of(command) if group != "experiment"]
    files = [("", conf_folder() / f"{command}.yaml")]
    for group in [*groups, *(["simulator"] if command == "evaluate" else [])]:
        files += [(group, file) for file in sorted((conf_folder() / group).glob("*.yaml"))]
    found: dict[str, Option] = {}
    for group, file in files:
        config = OmegaConf.to_container(OmegaConf.load(file), resolve=False)
        assert isinstance(config, dict)
        own = {name: value for name, value in config.items() if name not in ("defaults", "hydra")}
        for key, value in leaves(own, group):
            name, before = key.split(".")[-1], found.get(_general(key), Option(None, False))
            kind = _type_of(value, command, key)
            nullable = before.nullable or value is None or name in NULLABLE
            found[_general(key)] = Option(before.type or kind, nullable)
    return found


def _type_of(default: Any, command: str, key: str) -> Type:
    if default is None:
        name = key.split(".")[-1]
        return next((TYPES[one] for one in (f"{command}.{name}", key, name) if one in TYPES), None)
    is_numbers = isinstance(default, list) and default and not isinstance(default[0], str)
    return tuple if is_numbers else type(default)


def leaves(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """("edit.name", "remove"), … of nested mappings."""
    if isinstance(value, Mapping) and value:
        for name, inner in value.items():
            yield from leaves(inner, f"{key}.{name}" if key else str(name))
    else:
        yield key, value


def _general(key: str) -> str:
    """The key with "simulator" for the simulators that evaluate names itself."""
    return re.sub(r"^simulators\.[^.]+", "simulator", key)


# ------------------------------------------------------------------------------------ what was given


def as_typed(command: str, options: Sequence[str]) -> list[str]:
    """The options with their texts in quotes, so that hydra takes 007 or 1e3 as it was typed."""
    found = []
    for option in options:
        key, equals, value = option.partition("=")
        known = options_of(command).get(_general(key.lstrip("+")))
        is_whole = value.startswith("[") == value.endswith("]")
        if key in _WHOLE_TEXTS and not value.startswith(("'", '"')) and value not in ("", "null"):
            value = _quoted(value)
        elif equals and is_whole and known is not None and known.type in (str, list):
            value = _LIST_ITEM.sub(
                lambda item: item[0] if item[2] == "null" else f"{item[1]}'{item[2]}'", value
            )
        found.append(f"{key}{equals}{value}")
    return found


def _quoted(text: str) -> str:
    """A text as hydra takes it whole: backslashes count where a quote follows, and ${ would be looked up."""
    escaped = re.sub(r"(\\*)('|\Z)", lambda found: 2 * found[1] + (found[2] and "\\'"), text)
    return "'" + escaped.replace("${", "\\${") + "'"


def check(command: str, options: Sequence[str], sweep: bool = False) -> None:
    """Raises ValueError, in one sentence, for the first option that there is not or that cannot be read.

    sweep : whether options may have several values, a job for each.
    """
    given = [_parsed(option) for option in options]
    renamed.check(
        [override.key_or_group for override in given],
        {f"run.{old}": f"run.{new}" for old, new in renamed.RECORDING.items()},
        ValueError,
    )
    groups = groups_of(command)
    chosen = []
    for override, option in zip(given, options, strict=True):
        key = override.key_or_group
        if override.is_sweep_override() and not sweep:
            raise ValueError(
                f"{option} has several values: write a list as {key}=[a,b]; -m runs a job for each"
            )
        if key in groups and override.package is None and not override.is_sweep_override():
            value = override.value()
            if value not in groups[key] and not (key == "experiment" and value is None):
                there = f"{key} is one of {', '.join(groups[key])}, not {value}"
                raise ValueError(there + _hint(str(value), groups[key]))
            chosen.append(option)
    known = _known(command, chosen, sweep)
    for override in given:
        key = override.key_or_group
        is_new = override.is_add() or override.package is not None or key.startswith("hydra")
        if not is_new and key not in known and key not in groups:
            _unknown(command, key, known)
        if override.is_delete() and (key.split(".")[0] not in groups or key.endswith(".name")):
            raise ValueError(f"{command} needs the option {key}: ~ takes out options of {', '.join(groups)}")
    if not sweep:
        try:
            compose(command, options)
        except (HydraException, OmegaConfBaseException) as error:
            raise ValueError(str(error).splitlines()[0]) from None


def typed(command: str, config: DictConfig) -> DictConfig:
    """The configuration with every value as its option's type, and a list where one is expected.

    Raises ValueError for a value of another type.
    """
    known = options_of(command)

    def walk(value: Any, key: str) -> Any:
        if (general := _general(key)) in known:
            return convert(value, known[general], key)
        if isinstance(value, dict):
            return {name: walk(inner, f"{key}.{name}" if key else str(name)) for name, inner in value.items()}
        if inside := [name for name in known if name.startswith(f"{general}.")]:
            several = [f"{key}{name.removeprefix(general)}" for name in inside]
            raise ValueError(f"{key} is not one option but several: {', '.join(several)}")
        return value

    found = OmegaConf.create(walk(OmegaConf.to_container(config, resolve=False), ""))
    OmegaConf.set_struct(found, True)
    return found


def convert(value: Any, option: Option, key: str) -> Any:
    """A value as its option's type. Raises ValueError naming the option by its key."""
    kind = option.type
    if kind is None or (value is None and option.nullable) or (isinstance(value, str) and "${" in value):
        return value
    if kind is tuple and not isinstance(value, list):
        raise ValueError(f"{key} must be a list of numbers, got {_shown(value)}")
    if kind in (list, tuple):
        items = value if isinstance(value, list) else [] if value in (None, "") else [value]
        of = Option(str if kind is list else float, False)
        return [convert(item, of, key) for item in items]
    if value == "":
        raise ValueError(f"{key} must be {_NODES[kind][1]}, got nothing")
    if kind is str and value is not None and not isinstance(value, dict | list):
        return str(value)
    node, what = _NODES[kind]
    if kind is int and isinstance(value, float) and value.is_integer():
        value = int(value)
    try:
        return node(value, is_optional=False)._value()
    except OmegaConfBaseException:
        raise ValueError(f"{key} must be {what}, got {_shown(value)}") from None


def _parsed(option: str) -> Override:
    if "=" not in option and not option.startswith("~"):
        raise ValueError(f"{option!r} is not of the form option=value")
    try:
        return OverridesParser.create().parse_override(option)
    except HydraException:
        key, _, value = option.partition("=")
        quoted = value.replace("'", "\\'")
        raise ValueError(
            f"{option!r} cannot be read: write a list as {key}=[a,b], and a text with other signs in quotes,"
            f" as \"{key}='{quoted}'\""
        ) from None


def _known(command: str, chosen: Sequence[str], sweep: bool) -> set[str]:
    """The options of a command and their sections; those of every choice, where choices are swept over."""
    config = OmegaConf.to_container(compose(command, chosen), resolve=False)
    keys = [key for key, _ in leaves(config)] + (list(options_of(command)) if sweep else [])
    parts = [key.split(".") for key in keys]
    return {".".join(part[:length]) for part in parts for length in range(1, len(part) + 1)}


def _unknown(command: str, key: str, known: set[str]) -> None:
    if key == "simulator" and command == "evaluate":
        raise ValueError(
            "evaluate compares several simulators: only=[linear,auto] chooses among them, and simulator=FILE"
            " adds one that `simfluence fit` wrote"
        )
    hint = _hint(key, known) or f"; `simfluence {command} --help` lists them"
    raise ValueError(f"{key!r} is no option of {command}{hint}")


def _hint(name: str, known: Sequence[str] | set[str]) -> str:
    """The known name that is meant, as a question: edit.ids for edit.id, or for ids; "" if none is close."""
    by_end: dict[str, str] = {}
    for key in sorted(known):
        by_end.setdefault(key.split(".")[-1], key)
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.75)
    close = close or [
        by_end[end] for end in difflib.get_close_matches(name.split(".")[-1], by_end, n=1, cutoff=0.75)
    ]
    return f"; did you mean {close[0]!r}?" if close else ""


def _shown(value: Any) -> str:
    """A value as it is typed."""
    if isinstance(value, list):
        return f"[{','.join(_shown(item) for item in value)}]"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return str(value)
