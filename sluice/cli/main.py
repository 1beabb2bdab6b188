"""A command line -> the command's function; every error becomes one sentence and an exit code that is not 0."""

import sys
from importlib.metadata import PackageNotFoundError, version
from typing import Annotated

import typer

from shared.errors import SluiceError
from sluice.cli import (
    branch,
    chat,
    datasets,
    dead,
    doctor,
    down,
    ledger,
    lineage,
    logs,
    quantize,
    replay,
    runs,
    status,
    up,
    weights,
)
from sluice.cli.output import ERRORS, print_error
from sluice.demo import command

app = typer.Typer(
    name="sluice",
    help="Reinforcement-learning post-training for language models, as a stream-processing system.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
app.command("up")(up.up)
app.command("down")(down.down)
app.command("status")(status.status)
app.command("logs")(logs.logs)
app.command("doctor")(doctor.doctor)
app.command("chat")(chat.chat)
app.command("quantize")(quantize.quantize)
app.command("replay")(replay.replay)
app.command("branch")(branch.branch)
app.command("ledger")(ledger.ledger)
app.command("lineage")(lineage.lineage)
app.command("demo")(command.demo)
app.add_typer(datasets.app, name="dataset")
app.add_typer(runs.app, name="run")
app.add_typer(dead.app, name="dead")
app.add_typer(weights.app, name="weights")


def run() -> None:
    """The program `sluice`."""
    try:
        app()
    except SluiceError as error:
        print_error(str(error))
        details: list[object] = getattr(error, "details", [])
        for detail in details if len(details) > 1 else []:  # a single one is the error itself
            ERRORS.print(f"  {_line(detail)}", markup=False)
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:
        sys.stderr.close()  # the reader, such as `head`, has seen enough
        sys.exit(0)


def _line(detail: object) -> str:
    if isinstance(detail, dict) and detail.get("line") is not None and "error" in detail:
        return f"line {detail['line']}: {detail['error']}"
    return str(detail)


def _print_version(wanted: bool) -> None:
    if wanted:
        try:
            typer.echo(version("sluice-rl"))
        except PackageNotFoundError:
            typer.echo("not installed")
        raise typer.Exit


@app.callback()
def _options(
    show_version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass
