"""One example of each object of the REST API, shown at /docs."""

from typing import Any

DATASET: dict[str, Any] = {
    "name": "sums",
    "rows": 4000,
    "bytes": 141120,
    "sha256": "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
    "format": "jsonl",
    "created": 1760000000.0,
    "labels": True,
    "text_labels": True,
    "demonstrations": True,
    "pairs": False,
}
ROWS_JSONL = '{"prompt": "3+4=", "label": "7"}\n{"prompt": [{"role": "user", "content": "1+1="}], "label": "2"}\n'
EVALUATION: dict[str, Any] = {
    "version": 10,
    "dataset": "sums-held-out",
    "groups": 200,
    "done": 200,
    "attempts": 200,
    "dropped": 0,
    "off_version": 0,
    "reward_mean": 0.71,
    "complete": True,
}
SETTINGS: dict[str, Any] = {
    "name": "sums-grpo",
    "kind": "rl",
    "model": {"path": "/models/tiny-qwen3"},
    "data": {"datasets": [{"name": "sums", "weight": 1.0}]},
    "rollout": {"group_size": 8, "groups_per_step": 32, "max_staleness": 1},
    "reward": {"type": "exact_match"},
    "trainer": {"steps": 100, "learning_rate": 1e-4},
    "eval": {"datasets": ["sums-held-out"], "every": 10},
}
SETTINGS_TOML = """name = "sums-grpo"
kind = "rl"

[model]
path = "/models/tiny-qwen3"

[[data.datasets]]
name = "sums"

[rollout]
group_size = 8
groups_per_step = 32
max_staleness = 1

[trainer]
steps = 100
learning_rate = 1e-4
"""
METRICS: dict[str, float] = {"loss": 0.012, "reward_mean": 0.55, "kl": 0.0004, "grad_norm": 0.8, "seconds_total": 1.9}
RUN: dict[str, Any] = {
    "run": "sums-grpo",
    "kind": "rl",
    "state": "running",
    "reason": "",
    "created": 1760000000.0,
    "started": 1760000020.0,
    "ended": None,
    "step": 12,
    "steps": 100,
    "weight_version": 12,
    "counters": {"released": 448, "emitted": 430, "dropped": 2, "trained": 384, "weight_version": 12, "step": 12},
    "services": ["engine/node1-0", "reward/node1-812", "rollout/node1-811", "trainer/trainer"],
    "evaluations": [EVALUATION],
    "metrics": METRICS,
    "settings": SETTINGS,
}
STEP: dict[str, Any] = {"step": 12, "weight_version": 12, "metrics": METRICS}
SAMPLE: dict[str, Any] = {
    "group_id": 447,
    "attempt": 0,
    "dataset": "sums",
    "row": 3120,
    "kind": "train",
    "prompt": "3+4=",
    "text": "7",
    "label": "7",
    "reward": 1.0,
    "reward_detail": {},
    "finish_reason": "stop",
    "weight_versions": [(12, 2)],
    "prompt_tokens": 4,
    "response_tokens": 2,
    "worker": "node1-811",
}
