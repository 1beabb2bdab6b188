"""`sluice demo`: a tiny model, from demonstrations by any method to a plot, on all real services of this machine."""

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from shared.deployment import Deployment
from shared.errors import SluiceError
from sluice.answers import Run
from sluice.cli.down import stop
from sluice.cli.options import AsJson, deployment_of
from sluice.cli.output import note, print_json
from sluice.cli.up import start_detached
from sluice.connect import connect
from sluice.demo.plot import plot_in_terminal, write_png
from sluice.demo.recipe import DemoAlgorithm, make_recipe
from sluice.demo.rows import RowCounts, write_rows
from sluice.demo.summary import summarise, write_summary
from sluice.demo.train import Clock, DemoRuns

MARK = ".sluice-demo"
"""A folder with this file in it was made by the demo, and the next demo may replace it."""
MODEL_DEADLINE_S = 120.0
COUNTS = RowCounts(demonstrations=28_000, prompts=8_000, held_out=400)
WORKED_SHARE = 0.4


def demo(
    home: Annotated[Path, typer.Option(help="Folder for everything that the demo makes.")] = Path("runs/demo"),
    algorithm: Annotated[
        DemoAlgorithm, typer.Option(help="How the run after SFT learns; each is a file in examples/demo/algorithms.")
    ] = DemoAlgorithm.GRPO,
    seed: Annotated[int, typer.Option(help="Seed of the model, the rows and the runs.")] = 0,
    keep: Annotated[bool, typer.Option("--keep", help="Leave the services running at the end.")] = False,
    assignments: Annotated[
        list[str] | None, typer.Option("--set", help="A deployment setting, such as gateway.port=8400; repeatable.")
    ] = None,
    run_assignments: Annotated[
        list[str] | None, typer.Option("--run-set", help="A setting of the run after SFT, such as trainer.steps=20.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Train a tiny model with SFT and then RL, DPO or more SFT: real engine, real streams, no GPU."""
    clock, interrupted = Clock(), False
    deployment = deployment_of(None, [*(assignments or []), f"paths.home={home}"])
    recipe = make_recipe(algorithm, seed, run_assignments or [])
    _fresh_folder(home)
    try:
        note("[bold]1/5[/] a tiny Qwen3-architecture model and sums from reasoning-gym")
        model = _make_model(home / "model", seed)
        files = write_rows(home / "rows", seed, COUNTS, WORKED_SHARE)
        clock.lap("prepare")
        note("[bold]2/5[/] start the services: Redis, router, gateway, engine, rollout, reward, trainer")
        start_detached(deployment, home.absolute())
        clock.lap("start")
        with connect(deployment) as client:
            runs = DemoRuns(client, deployment.runs_folder, recipe, clock, as_json)
            done = runs.train(model, files)
    except KeyboardInterrupt:
        interrupted = True
        raise
    finally:
        outcome = "kept" if keep else stop(home.absolute())
        if interrupted:
            _tell_interrupted(home, outcome, assignments or [])
    summary = summarise(done.run, done.steps, done.held_out, clock.seconds, seed, algorithm.written)
    _report(home, deployment, done.run, summary, keep, as_json)


def _tell_interrupted(home: Path, outcome: str, assignments: list[str]) -> None:
    if outcome == "kept":
        note(
            f"interrupted; the services go on, and so does the run; stop them with: sluice down --set paths.home={home}"
        )
        return
    note(f"interrupted; {'all services were stopped' if outcome == 'stopped' else 'no service ran'}")
    if outcome == "stopped":
        settings = "".join(f" --set {one}" for one in assignments)
        note(f"to let the run go on: export SLUICE_PATHS__HOME={home}; sluice up -d{settings}; sluice run list")
    note(f"`sluice demo` begins anew, and replaces {home}")


def _fresh_folder(home: Path) -> None:
    if home.exists() and any(home.iterdir()):
        if not (home / MARK).exists():
            raise SluiceError(f"{home} holds something that the demo did not make; choose another folder with --home")
        stop(home.absolute())
        shutil.rmtree(home)
    home.mkdir(parents=True, exist_ok=True)
    (home / MARK).touch()


def _make_model(folder: Path, seed: int) -> Path:
    command = [sys.executable, "-m", "services.trainer.tiny_model", str(folder), "--seed", str(seed)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=MODEL_DEADLINE_S, check=False)
    if done.returncode:
        raise SluiceError(f"the tiny model could not be made: {done.stderr.strip().splitlines()[-1]}")
    return folder


def _report(home: Path, deployment: Deployment, run: Run, summary: dict[str, Any], keep: bool, as_json: bool) -> None:
    export = deployment.runs_folder / run.run / "export"
    summary = {**summary, "export": str(export)}
    file, picture = write_summary(home, summary), write_png(summary, home / "plot.png")
    if as_json:
        print_json(summary)
        return
    sys.stdout.write(plot_in_terminal(summary) + "\n")
    before, after, algorithm = (summary[name] for name in ("accuracy_before_rl", "accuracy_after_rl", "algorithm"))
    note(f"[bold]5/5[/] held-out accuracy: {before:.3f} before {algorithm}, [bold green]{after:.3f}[/] after")
    note(f"numbers {file}, plot {picture}")
    note(f"the model is in {export}; ask it with: sluice chat {export}")
    if keep:
        note(f"the services still run; stop them with: sluice down --set paths.home={home}")
