"""`sluice dataset ...`: files pushed to the gateway, listed, shown and deleted."""

import re
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Group
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn
from rich.table import Table

from shared.errors import SluiceError
from sluice.answers import Dataset
from sluice.cli.options import AsJson, Config, client_of
from sluice.cli.output import ERRORS, begin, chat_text, clock, note, print_json, show, size, table
from sluice.client import Client, GatewayError

app = typer.Typer(help="Datasets: rows of prompts with labels.", no_args_is_help=True)

PARAMETER = re.compile(r"\?(\w+_key|replace)=(?:true)?")


@app.command("push")
def push(  # noqa: PLR0913, PLR0917 one parameter is one option of the command
    file: Annotated[Path, typer.Argument(help="JSONL or Parquet file with one row a prompt.")],
    name: Annotated[str | None, typer.Option("--name", help="Name of the dataset; the file's, if not given.")] = None,
    format: Annotated[str | None, typer.Option("--format", help="jsonl or parquet; by the file's name.")] = None,
    prompt_key: Annotated[str, typer.Option(help="Field with the prompt: text, or chat messages.")] = "prompt",
    label_key: Annotated[str, typer.Option(help="Field with the right answer.")] = "label",
    metadata_key: Annotated[str, typer.Option(help="Field with anything else a reward needs.")] = "metadata",
    chosen_key: Annotated[str, typer.Option(help="Field with the better answer of a preference row.")] = "chosen",
    rejected_key: Annotated[str, typer.Option(help="Field with the worse one.")] = "rejected",
    replace: Annotated[bool, typer.Option("--replace", help="Take the place of the dataset of that name.")] = False,
    config: Config = None,
    as_json: AsJson = False,
) -> None:
    """Upload a file. A malformed row stores nothing and is told by its line."""
    if not file.is_file():
        raise SluiceError(f"{file} is not a file; give a JSONL or Parquet file")
    keys = {"prompt_key": prompt_key, "label_key": label_key, "metadata_key": metadata_key}
    keys |= {"chosen_key": chosen_key, "rejected_key": rejected_key}
    parameters = {**keys, "format": format} if format else keys
    wanted = name or file.name.partition(".")[0]
    with client_of(config) as client:
        dataset = _upload(client, wanted, file, {**parameters, "replace": "true"} if replace else parameters)
    if as_json:
        print_json(dataset)
    else:
        note(f"[green]pushed[/] {dataset.name}: {dataset.rows} rows, {size(dataset.bytes)}")


def _upload(client: Client, name: str, file: Path, parameters: dict[str, str]) -> Dataset:
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=ERRORS, transient=True, disable=not ERRORS.is_terminal) as bar:
        task = bar.add_task(f"pushing {file.name}", total=file.stat().st_size)
        try:
            return client.push_dataset(name, file, lambda count: bar.advance(task, count), **parameters)
        except GatewayError as error:
            raise GatewayError(_as_options(str(error)), error.status, [_of_row(one) for one in error.details]) from None


def _of_row(detail: Any) -> Any:
    return (
        {**detail, "error": _as_options(str(detail["error"]))}
        if isinstance(detail, dict) and "error" in detail
        else detail
    )


def _as_options(sentence: str) -> str:
    """Parameters of the request, `?prompt_key=`, as the options of this command: `--prompt-key`."""
    return PARAMETER.sub(lambda found: f"--{found[1].replace('_', '-')}", sentence)


@app.command("list")
def list_(config: Config = None, as_json: AsJson = False) -> None:
    """List the datasets."""
    with client_of(config) as client:
        found = client.datasets()
    rows = [(d.name, d.rows, size(d.bytes), d.format, clock(d.created)) for d in found]
    view = table(("dataset", "rows", "size", "format", "created"), rows)
    show(as_json, {"datasets": found}, view if found else "no datasets; push one with `sluice dataset push FILE`")


@app.command("show")
def show_(
    name: str,
    offset: Annotated[int, typer.Option(min=0, help="First row to show.")] = 0,
    limit: Annotated[int, typer.Option(min=1, help="Rows to show.")] = 5,
    config: Config = None,
    as_json: AsJson = False,
) -> None:
    """Show a dataset and some of its rows."""
    with client_of(config) as client:
        dataset, rows = client.dataset(name), client.rows(name, offset, limit)
    head = f"{dataset.name}: {dataset.rows} rows, {size(dataset.bytes)}, {dataset.format}, sha256 {dataset.sha256}"
    body = _pairs(rows) if dataset.pairs else _labelled(rows)
    show(as_json, {**dataset.model_dump(mode="json"), "preview": rows}, Group(head, "", body))


def _labelled(rows: list[dict[str, Any]]) -> Table:
    texts = [(r["row"], begin(chat_text(r["prompt"])), _short(r["label"])) for r in rows]
    return table(("row", "prompt", "label"), texts)


def _short(label: Any) -> Any:
    return begin(label) if isinstance(label, str) else label


def _pairs(rows: list[dict[str, Any]]) -> Table:
    texts = [(r["row"], *(begin(chat_text(r[name])) for name in ("prompt", "chosen", "rejected"))) for r in rows]
    return table(("row", "prompt", "chosen", "rejected"), texts)


@app.command("delete")
def delete(name: str, config: Config = None, as_json: AsJson = False) -> None:
    """Delete a dataset that no live run uses."""
    with client_of(config) as client:
        client.delete_dataset(name)
    if as_json:
        print_json({"deleted": name})
    else:
        note(f"deleted {name}")
