"""Arguments, checks and error output that all commands share."""

import argparse
import codecs
import io
import logging
import os
import select
import sys
import traceback
from pathlib import Path

from asvr.base.interruption import Interrupted
from asvr.base.launched import started_as

PACKAGE = str(Path(__file__).parents[1])


CONFIGS = {"bash": "_asvr_configs", "zsh": "_asvr_configs"}  # functions that complete a config, see completion.py


def new_parser(prog: str | None, doc: str, **kwargs) -> argparse.ArgumentParser:
    """Make the parser of a command. prog: its name in the help; None: from sys.argv. doc: its module's docstring."""
    kwargs = dict(formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False) | kwargs
    return argparse.ArgumentParser(prog=prog, description=doc, **kwargs)


def add_config(parser: argparse.ArgumentParser, **kwargs) -> None:
    """Add the argument CONFIG, which `asvr.base.recipes.config_file` resolves."""
    kwargs = dict(metavar="CONFIG", help="a config file, or the name of a recipe (asvr list recipes)") | kwargs
    parser.add_argument("config", **kwargs).complete = CONFIGS


def add_cfg_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--cfg-options", nargs="+", default=[], metavar="KEY=VALUE", help="change config fields: optim.lr=1e-4 ..."
    )


def parse_cfg_options(values: list[str], name: str = "--cfg-options") -> dict:
    """``["optim.lr=1e-4"]`` -> ``{"optim.lr": 1e-4}``, by MMEngine's rules. name: the name of the option."""
    from mmengine.config import DictAction  # here: --help need not wait for torch

    options = argparse.Namespace(cfg_options={})
    if values:
        wrong = [value for value in values if "=" not in value or not all(value.partition("=")[0].split("."))]
        if wrong:
            raise ValueError(f"{name} {wrong[0]!r}: expected KEY=VALUE")
        try:
            DictAction(name, "cfg_options")(None, options, values)
        except AssertionError as error:  # brackets that do not match
            raise ValueError(f"{name}: {error}") from error
        except RecursionError as error:  # MMEngine's parser only knows lists and tuples
            raise ValueError(
                f"{name}: lists of dicts cannot be given here: write them into a config file with _base_, or change "
                "one field, such as model.reconstruction.0.weight=0.5"
            ) from error
    return options.cfg_options


def add_talker(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of commands that ask a model questions."""
    parser.add_argument(
        "folder",
        help="a saved model, the work dir of a finished run, or org/name[@revision] of a model on the Hugging Face Hub",
    )
    parser.add_argument("--stage", help="the stage to load from a work dir (default: the last)")
    parser.add_argument("--device", default="auto", help="auto (default), cpu, cuda or cuda:0")
    parser.add_argument("--max-new-tokens", type=int, default=256, help="the most tokens of an answer (default: 256)")
    add_trust(parser)


def add_trust(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--trust-custom-imports",
        action="store_true",
        help="import the Python modules that a saved model names, which runs their code",
    )


def refuse_options(options: dict, why: str) -> None:
    """Raise ``ValueError`` if one of these options was given. options: argparse's values, by name. why: the end of the
    message."""
    for name, value in options.items():
        if value not in (None, False, []):
            raise ValueError(f"{_flag(name)} {why}")


def require_positive(options: dict) -> None:
    for name, value in options.items():
        if value is not None and value < 1:
            raise ValueError(f"{_flag(name)} {value}: expected at least 1")


def require_file(options: dict) -> None:
    for name, value in options.items():
        if value is not None and not value.is_file():
            raise ValueError(f"{_flag(name)}: there is no file {value}")


def require_folder(options: dict) -> None:
    for name, value in options.items():
        if value is not None and not value.is_dir():
            raise ValueError(f"{_flag(name)}: there is no folder {value}")


def _take_all_characters() -> None:
    """Print characters that the terminal's encoding does not have as escapes, and read UTF-8 even in the locale C."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # not in a notebook
            stream.reconfigure(errors="backslashreplace")
    if hasattr(sys.stdin, "reconfigure"):
        plain = codecs.lookup(sys.stdin.encoding).name == "ascii"
        sys.stdin.reconfigure(encoding="utf-8" if plain else sys.stdin.encoding, errors="surrogateescape")


def _not_a_name(error: ValueError) -> bool:
    """Whether an error says that the locale's encoding does not have a character of a file name."""
    return isinstance(error, UnicodeEncodeError) and error.encoding == sys.getfilesystemencoding() != "utf-8"


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _end(message: str) -> None:
    from asvr.base.log import close_bars  # here: --help need not wait for tqdm

    close_bars()
    sys.exit(_of_process(message))


def _of_process(message: str) -> str:
    """The message with the number of the process, if there are several. Some errors come only in one process."""
    rank, world = started_as()
    return message if world == 1 else f"process {rank} of {world}: {message}"


def _name_process() -> None:
    """Log to the terminal, with the number of the process, until the run has a log file. Only for several processes."""
    logger = logging.getLogger("asvr")
    if started_as()[1] > 1 and not logger.handlers:
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter(_of_process("%(message)s")))
        logger.addHandler(handler)


def _reader_is_gone() -> bool:
    """Whether nobody reads the standard output any more, as behind ``asvr list | head``. Its unwritten text is dropped
    then, because Python would try to write it once more when it ends. False where another pipe broke."""
    try:
        stdout = sys.stdout.fileno()
    except io.UnsupportedOperation:  # no file
        return False
    poll = select.poll()
    poll.register(stdout, 0)  # errors alone
    if gone := any(event & select.POLLERR for _, event in poll.poll(0)):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stdout)
    return gone


def _is_told(last: traceback.FrameSummary) -> bool:
    """Whether an error that was raised there tells the user what to correct: one of this library, or one that the
    script itself raises. The script's ``int("three")`` is a bug."""
    script = Path(last.filename).resolve() == Path(sys.argv[0]).resolve()
    return last.filename.startswith(PACKAGE) or (script and (last.line or "").startswith("raise "))


def run_tool(main) -> None:
    """Run the main function of a command.

    The user can correct a ``ValueError`` of this library or of the script itself, or a full disk. These are printed as
    one plain line, with exit code 1. Any other error keeps its traceback. No printed character ends a command, in any
    locale."""
    _take_all_characters()
    _name_process()
    try:
        main()
        sys.stdout.flush()  # here and not at the interpreter's end, where an error could not be caught
    except BrokenPipeError:
        if not _reader_is_gone():
            raise
        sys.exit(1)
    except ValueError as error:
        if _not_a_name(error):
            _end(
                f"error: {ascii(error.object)} is no name of a file under this locale, whose encoding is "
                f"{error.encoding}: set PYTHONUTF8=1, or a locale with UTF-8"
            )
        kind = type(error)
        own = kind.__module__.split(".")[0] == Path(PACKAGE).name  # `Refused`, also out of a DataLoader's worker
        if not own and not _is_told(traceback.extract_tb(error.__traceback__)[-1]):
            raise
        # The message of a DataLoader worker's error begins with its traceback.
        _end(f"error: {str(error).rpartition(f'{kind.__module__}.{kind.__qualname__}: ')[2].strip()}")
    except Interrupted as stop:
        print(_of_process(str(stop)), file=sys.stderr)
        raise
    except Exception as error:
        from asvr.base.disk import full_disk  # here: --help need not wait for torch

        if (full := full_disk(error)) is None:
            raise
        _end(
            f"error: {full.strerror}: {full.filename or 'a file of this run'} cannot be written. Make room and run "
            "the same command again"
        )
    except KeyboardInterrupt:
        sys.exit(_of_process("interrupted: the same command goes on from the last checkpoint"))
