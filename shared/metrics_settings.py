"""Where the metrics of a run's steps are written beside the ledger, as in its TOML file."""

from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import AfterValidator

from shared.settings import Settings

SinkName = Literal["jsonl", "tensorboard", "wandb", "trackio"]


def _each_once(names: list[SinkName]) -> list[SinkName]:
    if len(set(names)) < len(names):
        raise ValueError(f"metrics.sinks is {names}; name each sink once")
    return names


class MetricsSettings(Settings):
    """Where the metrics of steps go beside the ledger."""

    sinks: Annotated[list[SinkName], AfterValidator(_each_once)] = ["jsonl"]
    """jsonl and tensorboard write to the run's folder, wandb and trackio to where their own variables say."""
    project: str = "sluice"
    """wandb and trackio: the project that the run is shown in."""
    name: str = ""
    """wandb and trackio: the run's name there; empty for its name here."""


def metrics_problems(metrics: MetricsSettings) -> Iterator[str]:
    """A sentence about what is set for sinks that are not there."""
    usual = MetricsSettings()
    given = [name for name in ("project", "name") if getattr(metrics, name) != getattr(usual, name)]
    if given and not {"wandb", "trackio"} & set(metrics.sinks):
        yield (
            f"metrics.{', '.join(given)} is what wandb and trackio show, and metrics.sinks names neither; write"
            ' sinks = ["jsonl", "wandb"], or leave it out'
        )
