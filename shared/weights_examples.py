"""One example of a run's versions, of one of them and of an update under way, shown at /docs."""

from typing import Any

CHECKSUM = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"
SUMMARY: dict[str, Any] = {
    "version": 12,
    "parent": 11,
    "step": 12,
    "checksum": CHECKSUM,
    "groups": 32,
    "attempts": 256,
    "tokens": 20480,
    "metrics": {"reward_mean": 0.55, "loss": 0.012, "kl": 0.0004, "grad_norm": 0.8},
    "committed": 1760000390.2,
    "announced": 1760000390.6,
    "seconds": 0.84,
    "engines_done": 3,
    "engines_failed": 0,
    "is_current": True,
    "left_at": None,
    "can_be_had": True,
}
ENGINE: dict[str, Any] = {
    "engine": "node1-811",
    "state": "done",
    "up": True,
    "since": 1760000391.3,
    "seconds": 0.41,
    "phases": {
        "connect": 0.01,
        "pause": 0.02,
        "load": 0.31,
        "flush": 0.0,
        "prove": 0.06,
        "resume": 0.01,
        "total": 0.41,
    },
    "unverified": 0,
    "failures": 1,
    "reason": "the engines did not all join: timed out",
}
VERSION: dict[str, Any] = {
    **SUMMARY,
    "group_ids": [352, 353, 355],
    "metrics": {"loss": 0.012, "reward_mean": 0.55, "kl": 0.0004, "grad_norm": 0.8, "seconds_total": 1.9},
    "backend": "nccl",
    "nbytes": 1192000000,
    "announcements": 2,
    "replaced": [],
    "phases": {"hash": 0.21, "enrol": 0.02, "connect": 0.0, "broadcast": 0.3, "prove": 0.28, "total": 0.84},
    "engines": [ENGINE],
    "more_takes": 0,
    "parent_run": None,
}
ROLLBACK: dict[str, Any] = {
    "run": "sums-grpo",
    "version": 8,
    "state": "recorded",
    "asked": 1760000395.0,
    "step": 13,
    "reason": "",
}
VERSIONS: dict[str, Any] = {
    "run": "sums-grpo",
    "current": 12,
    "versions": [SUMMARY],
    "available": [(0, 0), (6, 12)],
    "rollback": ROLLBACK,
}
UPDATE: dict[str, Any] = {
    "run": "sums-grpo",
    "version": 12,
    "checksum": CHECKSUM,
    "announced": 1760000390.6,
    "enrol_until": 1760000420.6,
    "done_until": 1760000540.6,
    "complete": False,
    "engines": [ENGINE],
}
