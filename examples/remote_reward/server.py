"""A batch of rollouts -> their scores: a reward service of your own, `uvicorn server:app --port 8540`."""

from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel


class Rollout(BaseModel):
    """One attempt; `id` is run/group/attempt and the same whenever the attempt is sent again."""

    id: str
    prompt: Any
    response: str
    label: Any = None
    metadata: dict[str, Any] = {}
    dataset: str = ""
    finish_reason: str = ""


class Batch(BaseModel):
    rollouts: list[Rollout]


app = FastAPI(title="remote reward")


def score(rollout: Rollout) -> dict[str, float]:
    """1 for the right last word, 0.1 off if the answer is long; every number beside `score` is kept with the sample."""
    words = rollout.response.split()
    right = bool(words) and words[-1] == str(rollout.label)
    penalty = 0.1 if len(words) > 100 else 0.0
    return {"score": float(right) - penalty, "words": float(len(words))}


@app.get("/health")
def health() -> dict[str, str]:
    return {"status": "ok"}


@app.post("/")
def scores(batch: Batch) -> dict[str, list[dict[str, float]]]:
    return {"scores": [score(rollout) for rollout in batch.rollouts]}
