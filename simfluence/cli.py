"""``simfluence``: the command line. Parses (with hydra), calls a command, says what went wrong; all else is
elsewhere (the commands: ``simfluence/commands/``).
"""

from __future__ import annotations

import difflib
import os
import re
import sys
import warnings
from functools import wraps
from pathlib import Path

import hydra
from omegaconf import DictConfig
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from simfluence import __version__, options
from simfluence.cli_help import of_command, overview
from simfluence.commands import COMMANDS, Command
from simfluence.commands import command as find_command
from simfluence.commands.common import fail, plain, with_folder
from simfluence.errors import RecordingError
from simfluence.options import conf_folder

FLAGS = ("-h", "--help", "--version", "-m", "--multirun", "--cfg", "--resolve", "--info", "--hydra-help")
"""Ours, and those of hydra's that show something."""


def main(arguments: list[str] | None = None) -> None:
    """The entry point; ``arguments`` as on the command line."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    flags = {argument for argument in arguments if argument.startswith("-")}
    if unknown := sorted(flag for flag in flags if flag.split("=")[0] not in FLAGS):
        close = difflib.get_close_matches(unknown[0], FLAGS, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        fail(f"there is no flag {unknown[0]!r}{hint}")
    given = [argument for argument in arguments if argument not in flags]
    if "--version" in flags:
        print(f"simfluence {__version__}")
        return
    if not given:
        print(overview(COMMANDS))
        return
    command = given[0]
    if command not in COMMANDS:
        close = difflib.get_close_matches(command, COMMANDS, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        fail(f"no command is named {command!r}; there are {', '.join(COMMANDS)}{hint}")
    sweep = bool(flags & {"-m", "--multirun"})
    try:
        overrides = options.as_typed(command, _from_files(command, given[1:]))
        options.check(command, overrides, sweep)
    except ValueError as error:
        fail(str(error))
    if flags & {"-h", "--help"}:
        print(of_command(command, COMMANDS[command], overrides))
        return
    warnings.formatwarning = lambda message, category, *_: f"{category.__name__}: {message}\n"
    os.environ.setdefault("HYDRA_FULL_ERROR", "0")
    sys.argv = [f"simfluence {command}", *sorted(flags), *overrides]
    run = hydra.main(version_base="1.3", config_path=str(conf_folder()), config_name=command)
    run(_reported_plainly(command))()


def _from_files(command: str, given: list[str]) -> list[str]:
    """simulator=FILE as fitted=FILE: a file that ``fit`` wrote is no choice of a group."""
    taken = [
        option
        for option in given
        if re.match(r"simulator=.*(\.safetensors|/)", option)
        or (option.startswith("simulator=") and Path(option.removeprefix("simulator=")).is_file())
    ]
    if taken and command == "fit":
        raise ValueError(f"{taken[0]} is fitted already: whatif, explore and evaluate take it")
    settings = [option for option in given if option.startswith("simulator.")]
    if taken and settings and command != "evaluate":
        raise ValueError(f"{taken[0]} is fitted already: it does not take {settings[0]}")
    return [option.replace("simulator=", "fitted=", 1) if option in taken else option for option in given]


def _reported_plainly(command: str) -> Command:
    """A command that is given its options as their types, and says what went wrong in a sentence, without a
    traceback, where the user can mend it."""
    function = find_command(command)

    @wraps(function)
    def reported(config: DictConfig) -> None:
        try:
            function(with_folder(command, options.typed(command, config)))
        except MissingMandatoryValue as error:
            fail(f"{error.full_key} has no value: give one by {error.full_key}=…")
        except OmegaConfBaseException as error:
            fail(str(error).splitlines()[0])
        except (RecordingError, ValueError, OSError) as error:
            fail(str(error))
        except TypeError as error:
            if not (
                found := re.search(
                    r"(\w+)(?:\.__init__)?\(\) got an unexpected keyword argument '(\w+)'", str(error)
                )
            ):
                raise
            keys = [key for key, _ in options.leaves(plain(config)) if key.split(".")[-1] == found[2]]
            where = keys[0] if keys else found[2]
            fail(f"{found[1]} has no option {found[2]!r}; ~{where} leaves it out")

    return reported


if __name__ == "__main__":
    main()
