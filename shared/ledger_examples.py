"""One example of a ledger, of a lineage and of a dead letter, shown at /docs."""

from typing import Any

LEDGER: dict[str, Any] = {
    "run": "sums-grpo",
    "state": "running",
    "time": 1760000400.0,
    "step": 12,
    "intended": 13,
    "groups": {
        "released": 648,
        "evaluations": 200,
        "trained": 384,
        "evaluated": 200,
        "dropped": {"filter": 2},
        "dead": 1,
        "pending": {"prompts": 4, "rollouts": 3, "joining": 9, "ready": 13, "intended": 32},
        "lost": 0,
        "twice": 0,
    },
    "tokens": {
        "total": {"generated": 5120, "trained": 3072, "evaluated": 1600, "dropped:filter": 32, "undecided": 416},
        "dataset": {"sums": {"generated": 3520, "trained": 3072, "dropped:filter": 32, "undecided": 416}},
        "worker": {"node1-811": {"generated": 5120, "trained": 3072, "evaluated": 1600, "undecided": 416}},
        "version": {"12": {"generated": 448, "trained": 32, "undecided": 416}},
    },
    "verified": True,
    "balanced": True,
    "problems": [],
    "lost": [],
    "twice": [],
    "checks": ["each of 648 groups is in exactly one state", "12 commits and 13 intents are recorded, each once"],
}
LINEAGE: dict[str, Any] = {
    "run": "sums-grpo",
    "group_id": 447,
    "state": "trained",
    "dropped_because": "",
    "kind": "train",
    "dataset": "sums",
    "row": 3120,
    "prompt": "3+4=",
    "label": "7",
    "group_size": 8,
    "attempts": [
        {
            "attempt": 0,
            "worker": "node1-811",
            "weight_versions": [(12, 2)],
            "prompt_tokens": 4,
            "response_tokens": 2,
            "finish_reason": "stop",
            "seconds": 0.21,
            "reward": 1.0,
            "reward_detail": {},
            "text": "7",
        }
    ],
    "source": "redis",
    "note": "",
    "events": [],
    "step": 13,
    "step_committed": True,
    "weight_version": 13,
    "checksum": "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
    "sampled_by": {"12": "60303ae22b998861bce3b28f33eec1be758a213c86c93c076dbe9f558c11c752"},
}
DEAD_LETTER: dict[str, Any] = {
    "id": "1760000123456-0",
    "stream": "rollouts",
    "group_id": 31,
    "error": "ZeroDivisionError: division by zero",
    "deliveries": 5,
    "time": 1760000123.4,
    "bytes": 812,
    "redrivable": True,
    "why_not": "",
}
