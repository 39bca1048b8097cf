"""The command line: finds the subcommand, imports it and nothing else, and turns what happens into an exit code."""

import gc
import importlib
import os
import sys
import traceback
from collections.abc import Sequence

import click

import sftrun
from sftrun.errors import UserError

DONE, FIXABLE, USAGE, BUG, INTERRUPTED = 0, 1, 2, 3, 130

# Name: the module that has the click command `command`, and one line of help.
COMMANDS = {
    "run": ("sftrun.cli.run", "Run a recipe; the same as `sftrun RECIPE`."),
    "validate": ("sftrun.cli.validate", "Say everything that is wrong with recipes."),
    "inspect": ("sftrun.cli.inspect", "Show which text of each row is trained."),
    "prepare": ("sftrun.cli.prepare", "Turn rows into tokens and masks, without training."),
    "resume": ("sftrun.cli.resume", "Go on with a run that was stopped."),
    "plan": ("sftrun.cli.plan", "Say what a recipe will take: parameters, steps, memory, time."),
    "rehearse": ("sftrun.cli.rehearse", "Run a recipe in small, every stage, with a tiny random model."),
    "eval": ("sftrun.cli.eval", "Score the models of a run again."),
    "chat": ("sftrun.cli.chat", "Talk to the model of a run."),
    "generate": ("sftrun.cli.generate", "Answer a file of prompts."),
    "cache": ("sftrun.cli.cache", "Show what the cache holds, or empty it."),
    "plugins": ("sftrun.cli.plugins", "List what is installed, and what is broken."),
    "new-plugin": ("sftrun.cli.new_plugin", "Write the project of a new component, with tests."),
    "schema": ("sftrun.cli.schema", "Print the JSON Schema of a recipe, for editors."),
}
RUN = "run"  # what a recipe without a subcommand means


class Commands(click.Group):
    """Subcommands by name, each imported when it is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """All names, in the order of the table."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """One subcommand."""
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = importlib.import_module(COMMANDS[cmd_name][0]).command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The list of `--help`, from the table alone."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, about) for name, (_, about) in COMMANDS.items()])

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """The subcommand that the first word names; a recipe stands for `run` with that recipe."""
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
    hint = f"Did you mean '{close[0]}'?" if close else f"There are: {', '.join(COMMANDS)}."
    return f"'{word}' is neither a command nor a recipe. {hint}"


@click.command(
    cls=Commands,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Exit codes: 0 done; 1 something to fix; 2 wrong usage; 3 a bug of sftrun; 130 interrupted.",
)
@click.version_option(sftrun.__version__, prog_name="sftrun")
def cli() -> None:
    """Supervised fine-tuning from a recipe: `sftrun RECIPE` runs it all."""


def main(args: Sequence[str] | None = None) -> None:
    """Runs one command line and exits."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a terminal that cannot show a character is no reason to fail
            stream.reconfigure(errors="backslashreplace")
    gc.set_threshold(50_000)  # start-up makes objects that live on: collecting them costs a fifth of `validate`
    sys.exit(run(sys.argv[1:] if args is None else list(args)))


def run(args: list[str]) -> int:
    """Runs one command line; the exit code."""
    try:
        code = cli.main(args, prog_name="sftrun", standalone_mode=False)
        sys.stdout.flush()
    except UserError as error:
        from sftrun.cli import show

        show.problems(error.problems)
        return FIXABLE
    except click.ClickException as error:
        error.show()
        return USAGE if isinstance(error, click.UsageError) else FIXABLE
    except (KeyboardInterrupt, click.Abort) as error:
        why = str(error.__cause__ or error)  # click makes an Abort of it
        print(f"interrupted; {why}" if why else "interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:  # whoever read our output has what they wanted: `sftrun plugins | head -1`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FIXABLE
    except Exception as error:
        return _failed(error, args)
    return code if isinstance(code, int) else DONE


def _failed(error: Exception, args: Sequence[str]) -> int:
    from sftrun import files

    if hint := files.advice(error):
        print(f"error: {files.said(error)}; {hint}", file=sys.stderr)
        return FIXABLE
    traceback.print_exc()
    print(_report(args), file=sys.stderr)
    return BUG


def _report(args: Sequence[str]) -> str:
    import platform
    import shlex
    from importlib import metadata

    found = [f"Python {platform.python_version()}", platform.platform()]
    for name in ("torch", "transformers", "trl", "peft", "datasets", "msgspec", "ruamel.yaml", "jsonschema"):
        try:
            found.append(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            continue
    versions = ", ".join([f"sftrun {sftrun.__version__}", *found])
    command = shlex.join(["sftrun", *args])
    asked = "This is a bug of sftrun. Please report it with the lines above and these:"
    return f"\n{asked}\n  command: {command}\n  versions: {versions}"
