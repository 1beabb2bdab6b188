"""A reward plugin: 1 if what follows the thinking is the label, else 0."""

from shared.messages import Rollout


async def score(rollout: Rollout) -> dict[str, float]:
    """The score, and in its details whether the attempt thought before it answered."""
    thoughts, _, answer = rollout.text.rpartition("</think>")
    thought = bool(thoughts.removeprefix("<think>").strip())
    return {"score": float(answer.strip() == str(rollout.label)), "thought": float(thought)}
