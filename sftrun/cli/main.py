"""The command line: imports the subcommand alone, runs it, and turns its outcome into an exit code."""

import codecs
import gc
import importlib
import os
import sys
import traceback
from collections.abc import Sequence

import click

import sftrun
from sftrun import scrub
from sftrun.errors import UserError

DONE, FIXABLE, USAGE, BUG, INTERRUPTED = 0, 1, 2, 3, 130

# name: module with the click command `command`, one line of help
COMMANDS = {
    "run": ("sftrun.cli.run", "Run a recipe; the same as `sftrun RECIPE`."),
    "validate": ("sftrun.cli.validate", "List every mistake in recipes."),
    "inspect": ("sftrun.cli.inspect", "Show which text of each row is trained."),
    "prepare": ("sftrun.cli.prepare", "Turn rows into tokens and masks, without training."),
    "resume": ("sftrun.cli.resume", "Resume a run that was stopped."),
    "plan": ("sftrun.cli.plan", "Estimate what a recipe needs: parameters, steps, memory, disk."),
    "rehearse": ("sftrun.cli.rehearse", "Try out every stage of a recipe with a tiny random model."),
    "verify": ("sftrun.cli.verify", "Check every file of a run, and show what its model was made of."),
    "eval": ("sftrun.cli.eval", "Score the base and the tuned model of a run again."),
    "chat": ("sftrun.cli.chat", "Chat with the model of a run."),
    "generate": ("sftrun.cli.generate", "Answer a file of prompts with the model of a run."),
    "cache": ("sftrun.cli.cache", "Show or clear the cache of prepared data."),
    "plugins": ("sftrun.cli.plugins", "List installed components and broken plugins."),
    "new-plugin": ("sftrun.cli.new_plugin", "Write the project of a new component, with tests."),
    "schema": ("sftrun.cli.schema", "Print the JSON Schema of a recipe, for editors."),
}
RUN = "run"  # the command that `sftrun RECIPE` is short for


class Commands(click.Group):
    """The group of subcommands, each imported when it is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Returns the names of all subcommands, in the order of the table."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Imports and returns a subcommand; None if there is no such name."""
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = importlib.import_module(COMMANDS[cmd_name][0]).command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Writes the list of `--help` from the table, without importing any subcommand."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, about) for name, (_, about) in COMMANDS.items()])

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Resolves the first word to a subcommand; a recipe file is short for `run` with that file."""
        word = args[0]
        if word not in COMMANDS and RUN in COMMANDS and _is_recipe(word):
            return super().resolve_command(ctx, [RUN, *args])
        if word not in COMMANDS:
            ctx.fail(_unknown(word))
        return super().resolve_command(ctx, args)


def _is_recipe(word: str) -> bool:
    return word.endswith((".yaml", ".yml")) or os.path.isfile(word)


def _unknown(word: str) -> str:
    import difflib

    close = difflib.get_close_matches(word, COMMANDS, n=1)
    hint = f"Did you mean '{close[0]}'?" if close else f"The commands are {', '.join(COMMANDS)}."
    return f"'{word}' is neither a command nor a recipe. {hint}"


@click.command(
    cls=Commands,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Exit codes: 0 done; 1 something to fix; 2 wrong usage; 3 a bug in sftrun; 130 interrupted.",
)
@click.version_option(sftrun.__version__, prog_name="sftrun")
def cli() -> None:
    """Supervised fine-tuning from a recipe: `sftrun RECIPE` prepares, trains, evaluates, exports and reports."""


def main(args: Sequence[str] | None = None) -> None:
    """Runs one command line and exits."""
    _open_closed_streams()
    codecs.register_error("escape", _escape)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a terminal that cannot show a character is no reason to fail
            stream.reconfigure(errors="escape")
    gc.set_threshold(50_000)  # start-up makes long-lived objects; collecting them takes a fifth of `validate`'s time
    sys.exit(run(sys.argv[1:] if args is None else list(args)))


def _open_closed_streams() -> None:
    """Opens standard streams that the caller has closed (`>&-`) as /dev/null; a file would get their number instead."""
    for number, (name, mode) in enumerate((("stdin", "r"), ("stdout", "w"), ("stderr", "w"))):
        if getattr(sys, name) is None:
            opened = os.open(os.devnull, os.O_RDWR)
            if opened != number:
                os.dup2(opened, number)
                os.close(opened)
            setattr(sys, name, os.fdopen(number, mode))


def _escape(error: UnicodeError) -> tuple[str, int]:
    """Writes characters that a stream cannot encode as JSON escapes, so that JSON on it stays valid."""
    assert isinstance(error, UnicodeEncodeError)
    import json

    return json.dumps(error.object[error.start : error.end])[1:-1], error.end


def run(args: list[str]) -> int:
    """Runs one command line and returns its exit code."""
    with scrub.guarded():
        return _run(args)


def _run(args: list[str]) -> int:
    try:
        code = cli.main(args, prog_name="sftrun", standalone_mode=False)
        sys.stdout.flush()
    except UserError as error:
        from sftrun.cli import show

        show.print_problems(error.problems)
        return FIXABLE
    except click.ClickException as error:
        error.show()
        return USAGE if isinstance(error, click.UsageError) else FIXABLE
    except (KeyboardInterrupt, click.Abort) as error:
        why = str(error.__cause__ or error)  # click raises Abort from the KeyboardInterrupt
        print(f"interrupted; {why}" if why else "interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:  # the reader of our output has closed it: `sftrun plugins | head -1`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FIXABLE
    except SystemExit:
        raise
    except BaseException as error:  # also those of plugins that are no Exception
        return _failed(error, args)
    return code if isinstance(code, int) else DONE


def _failed(error: BaseException, args: Sequence[str]) -> int:
    from sftrun import files

    if hint := files.disk_advice(error):
        print(f"error: {files.first_line(error)}; {hint}", file=sys.stderr)
        return FIXABLE
    traceback.print_exc()
    print(_bug_report(args), file=sys.stderr)
    return BUG


def _bug_report(args: Sequence[str]) -> str:
    import platform
    import shlex
    from importlib import metadata

    versions = [f"Python {platform.python_version()}", platform.platform()]
    for name in ("torch", "transformers", "trl", "peft", "datasets", "msgspec", "ruamel.yaml", "jsonschema"):
        try:
            versions.append(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            continue
    versions_line = ", ".join([f"sftrun {sftrun.__version__}", *versions])
    command = shlex.join(["sftrun", *args])
    request = "This is a bug in sftrun. Please report it, with the lines above and these:"
    return f"\n{request}\n  command: {command}\n  versions: {versions_line}"
