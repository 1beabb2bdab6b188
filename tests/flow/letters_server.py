"""A remote reward that tells even the answers of a random model apart: the share of ASCII letters among the bytes."""

from fastapi import FastAPI, Request

app = FastAPI()


@app.get("/health")
def health() -> dict[str, str]:
    return {"status": "ok"}


@app.post("/")
async def scores(request: Request) -> dict[str, list[float]]:
    answers = [rollout["response"] for rollout in (await request.json())["rollouts"]]
    return {"scores": [sum(c.isascii() and c.isalpha() for c in text) / max(len(text), 1) for text in answers]}
