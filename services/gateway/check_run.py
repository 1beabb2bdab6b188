"""The body of POST /v1/runs -> checked run settings whose datasets and model are there."""

import json
import os
import tomllib
from collections import Counter
from pathlib import Path
from typing import Any, cast

from services.gateway.dataset_store import DatasetStore
from services.gateway.refusals import Refusal
from services.gateway.suggest_name import suggest
from shared.errors import SettingsError
from shared.rest_answers import Dataset
from shared.run_settings import RunSettings
from shared.settings import validate

LABELLED_REWARDS = ("exact_match", "contains", "math")
TYPES = ("application/json", "application/toml")


def parse_run(content_type: str, body: bytes) -> RunSettings:
    """JSON or TOML -> settings.

    Raises:
        Refusal: the type is neither, or the text is malformed.
        SettingsError: a setting is unknown or wrong.
    """
    media_type = content_type.partition(";")[0].strip().lower()
    if media_type not in TYPES:
        raise Refusal(415, f"content-type is {content_type!r}; send {' or '.join(TYPES)}")
    try:
        text = body.decode("utf-8")
        tree: Any = json.loads(text) if media_type == "application/json" else tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise Refusal(422, f"the body is not valid {media_type}: {error}") from error
    if not isinstance(tree, dict):
        raise Refusal(422, 'the body is not an object; send the run settings, {"name": ..., "model": ..., ...}')
    settings = validate(RunSettings, cast(dict[str, Any], tree), "run")
    if settings.branch is not None:
        raise SettingsError(
            "run: branch is set by POST /v1/runs/{run}/branch, which is `sluice branch RUN --from STEP`; leave it out"
        )
    return settings


def check_run(settings: RunSettings, datasets: DatasetStore) -> None:
    """SettingsError unless the datasets are there and fit the run, and the model is where an absolute path says."""
    shares = settings.trained_datasets
    found = {
        **_find("data.datasets", [share.name for share in shares], datasets),
        **_find("eval.datasets", settings.eval.datasets, datasets),
    }
    if shares and not any(share.weight for share in shares):
        raise SettingsError("run: data.datasets: every weight is 0; give at least one dataset a weight above 0")
    for dataset in found.values():
        _check_labels(settings, dataset)
    path = Path(settings.model.path)
    if path.is_absolute() and not os.path.exists(path):  # unlike Path.exists, for names of any length
        raise SettingsError(f"run: model.path is {str(path)!r}, which is not there; write the folder of a checkpoint")


def _find(setting: str, names: list[str], datasets: DatasetStore) -> dict[str, Dataset]:
    known = datasets.names()
    for name, times in Counter(names).items():
        if times > 1:
            raise SettingsError(f"run: {setting} names {name} {times} times; name it once")
        if name not in known:
            raise SettingsError(f"run: {setting}: there is no dataset {name!r}; {suggest(name, known, 'datasets')}")
    return {name: datasets.get(name) for name in names}


def _check_labels(settings: RunSettings, dataset: Dataset) -> None:
    if settings.kind == "sft" and not (dataset.text_labels or dataset.demonstrations):
        raise SettingsError(
            f"run: dataset {dataset.name} has rows whose label is no text; an sft run trains the label as the answer, "
            "so upload the dataset with a text in every label, or without it and with messages that end with one of "
            "the assistant"
        )
    if settings.kind == "dpo" and not dataset.pairs:
        raise SettingsError(
            f"run: dataset {dataset.name} has rows without a pair of answers, which a dpo run learns from; upload it "
            "with a chosen and a rejected answer in every row (see chosen_key and rejected_key)"
        )
    if settings.kind == "rl" and settings.reward.type in LABELLED_REWARDS and not dataset.labels:
        raise SettingsError(
            f"run: dataset {dataset.name} has rows without a label, which reward.type {settings.reward.type!r} "
            "compares with; upload it with labels (see label_key), or choose another reward"
        )
