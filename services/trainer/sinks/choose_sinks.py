"""Names of sinks in a run's settings -> what opens them; a package that is missing is told before the run begins."""

from importlib.util import find_spec

from services.trainer.sinks import jsonl, tensorboard, trackio, wandb
from services.trainer.sinks.sink import OpenSink
from shared.errors import RunRejected
from shared.metrics_settings import SinkName

OPENERS: dict[SinkName, OpenSink] = {
    "jsonl": jsonl.JsonLines,
    "tensorboard": tensorboard.TensorBoard,
    "wandb": wandb.WeightsAndBiases,
    "trackio": trackio.Trackio,
}
WITHOUT_PACKAGE = "jsonl"


def choose_sinks(names: list[SinkName]) -> dict[SinkName, OpenSink]:
    """RunRejected with what to install."""
    missing = [name for name in names if name != WITHOUT_PACKAGE and not is_installed(name)]
    if missing:
        raise RunRejected(
            f"metrics.sinks names {', '.join(missing)}, which is not installed where the trainer runs; run `pip install"
            f" 'sluice-rl[{','.join(missing)}]'` there, or leave it out"
        )
    return {name: OPENERS[name] for name in names}


def is_installed(package: str) -> bool:
    """A mere folder of that name, such as wandb leaves where it ran, is found too, and has no file."""
    spec = find_spec(package)
    return spec is not None and spec.origin is not None
