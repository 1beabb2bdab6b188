"""A name -> the settings of a chaos run: small steps, and short leases, so that the work of the dead is taken up."""

from typing import Any

from benchmarks.chaos.stack import DATASET, Stack, Variant

POLICIES = (
    {"staleness_policy": "train"},
    {"staleness_policy": "wait"},
    {"staleness_policy": "drop", "over_sampling": 4},
)
GROUPS_PER_STEP, GROUP_SIZE = 4, 4
CHECKPOINT_EVERY = 4


def run_tree(stack: Stack, name: str, number: int, steps: int, variant: Variant) -> dict[str, Any]:
    """The settings of run number `number`; runs take turns in how they treat stale groups.

    A kill counts as a delivery of what the killed worker held, so `max_deliveries` is above the number of times that
    one entry is likely to be hit; with the usual 5, hundreds of kills in minutes would make dead letters.
    """
    longest = 48 if variant == "fast" else 96
    return {
        "name": name,
        "seed": number,
        "model": {"path": str(stack.model)},
        "data": {"datasets": [{"name": DATASET}]},
        "rollout": {
            "group_size": GROUP_SIZE,
            "groups_per_step": GROUPS_PER_STEP,
            "max_staleness": 2,
            "concurrency": 16,
            "partial_tokens": 8,
            "partial_seconds": 0.5,
            "request_deadline_s": 60,
            "sampling": {"max_new_tokens": longest},
            **POLICIES[number % len(POLICIES)],
        },
        "engine": {
            "server_args": {
                "context_length": 128,
                "max_running_requests": 64,
                "max_total_tokens": 8192,
                "stream_interval": 4,
            },
            "start_deadline_s": 120,
        },
        "reward": {"type": "contains", "group_filter": "nonzero_std"},
        "trainer": {
            "steps": steps,
            "learning_rate": 1e-4,
            "checkpoint_every": CHECKPOINT_EVERY,
            "keep_checkpoints": 2,
            # the fast variant's tokens come from no model
            "check_first_step": variant == "real",
        },
        "weights": {"enrol_deadline_s": 3, "update_deadline_s": 60},
        "delivery": {"lease_s": 2, "max_deliveries": 50},
    }
