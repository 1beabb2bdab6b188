"""The table of a step -> what its samples were like: rewards, lengths, staleness."""

import numpy as np
from numpy.typing import NDArray

from services.trainer.step_table import StepTable


def batch_metrics(table: StepTable, weight_version: int, is_rl: bool) -> dict[str, float]:
    """Means over samples; staleness is `weight_version`, which the step starts from, minus a sample's oldest one."""
    attempts = np.unique(np.stack([table.group_id, table.attempt]), axis=1).shape[1]
    metrics: dict[str, float] = {
        "groups": len(np.unique(table.group_id)),
        "attempts": attempts,
        "tokens": table.tokens,
        "response_tokens": int(table.response_tokens.sum()),
        "trained_tokens": int(table.trained_tokens.sum()),
        "response_length_mean": float(table.response_tokens.sum() / max(attempts, 1)),
    }
    return {**metrics, **_rl_metrics(table, weight_version)} if is_rl else metrics


def _rl_metrics(table: StepTable, weight_version: int) -> dict[str, float]:
    known = table.versioned_tokens > 0
    staleness = np.where(known, weight_version - table.oldest_version, 0)
    return {
        "reward_mean": float(table.reward.mean()),
        "reward_std": float(table.reward.std()),
        "staleness_mean": float(staleness.mean()),
        "staleness_max": int(staleness.max()),
        **_staleness_by_place(table, weight_version, known),
        "truncated_fraction": float(table.truncated.mean()),
    }


def _staleness_by_place(table: StepTable, weight_version: int, known: NDArray[np.bool_]) -> dict[str, float]:
    """Versions that passed while groups were generated (in flight), and after that until their step (in queue).

    The mean over tokens weighs every token alike, the other two every group.
    """
    groups, index = np.unique(table.group_id, return_inverse=True)
    oldest, newest = np.full(len(groups), weight_version), np.full(len(groups), -1)
    np.minimum.at(oldest, index[known], table.oldest_version[known])
    np.maximum.at(newest, index[known], table.newest_version[known])
    newest = np.where(newest < 0, weight_version, newest)
    tokens = int(table.versioned_tokens.sum())
    behind = weight_version * tokens - int(table.version_sum[known].sum())
    return {
        "staleness_token_mean": behind / max(tokens, 1),
        "staleness_in_flight_mean": float((newest - oldest).mean()),
        "staleness_in_queue_mean": float((weight_version - newest).mean()),
    }
