"""A prompt -> tokens that follow from it alone, one after the other, as fast as an engine is told to be."""

import hashlib
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

LETTERS = range(64, 90)
"""Ids of a to z in the byte-level tokenizer of the tiny model."""
SHORTEST, MEAN = 3, 12
"""Tokens of an answer: at least SHORTEST, about MEAN, some much longer."""


@dataclass(slots=True)
class Attempt:
    """One continuation under way."""

    index: int
    prefix: bytes
    """Hash of everything before the next token."""
    token_ids: list[int] = field(default_factory=list[int])
    logprobs: list[float] = field(default_factory=list[float])
    versions: list[str] = field(default_factory=list[str])
    """The version that was served when each token was made."""
    finish: str = ""

    def extend(self, version: str, seed: int, longest: int, eos_id: int) -> None:
        """Add the next token: a function of the prompt, the attempt, the version and the seed."""
        digest = hashlib.sha256(self.prefix + f"|{version}|{seed}".encode()).digest()
        ends = len(self.token_ids) >= SHORTEST and digest[0] < 256 // MEAN
        token = eos_id if ends else LETTERS[digest[1] % len(LETTERS)]
        self.prefix = hashlib.sha256(self.prefix + token.to_bytes(4, "little")).digest()
        self.token_ids.append(token)
        self.logprobs.append(-2.0 - digest[2] / 64)
        self.versions.append(version)
        if ends or len(self.token_ids) >= longest:
            self.finish = "stop" if ends else "length"

    def as_answer(self, since: int = 0) -> dict[str, Any]:
        """The item that SGLang would answer; `since` leaves out what a stream of differences has sent before."""
        triples = list(zip(self.logprobs, self.token_ids, [None] * len(self.token_ids), strict=True))
        spans: list[dict[str, Any]] = []
        for at, version in enumerate(self.versions):
            if not spans or spans[-1]["version"] != version:
                spans.append({"version": version, "start": at, "end": at})
            spans[-1]["end"] = at + 1
        meta = {
            "id": f"{self.prefix.hex()[:16]}-{self.index}",
            "finish_reason": {"type": self.finish} if self.finish else None,
            "completion_tokens": len(self.token_ids),
            "output_token_logprobs": triples[since:],
            "weight_version": self.versions[-1] if self.versions else "",
            "weight_versions": spans,
        }
        return {"text": "", "output_ids": self.token_ids[since:], "meta_info": meta, "index": self.index}


@dataclass
class TokenStream:
    """Makes tokens for any number of requests at once, each in a thread of its own."""

    seed: int
    eos_id: int
    seconds_per_token: float
    version: str = "default"
    _running: threading.Event = field(default_factory=threading.Event)
    _aborts: int = 0

    def __post_init__(self) -> None:
        self._running.set()

    def pause(self, mode: str) -> None:
        """Hold all requests; mode abort ends them with what they have."""
        if mode == "abort":
            self.abort()
        self._running.clear()

    def resume(self) -> None:
        self._running.set()

    def abort(self) -> None:
        """End every request with what it has."""
        self._aborts += 1

    def answer(self, body: dict[str, Any], told: Callable[[Attempt], None]) -> list[Attempt]:
        """All continuations of one request; `told` hears of every new token."""
        sampling, ids = body["sampling_params"], bytes(str(body["input_ids"]), "ascii")
        count, longest = int(sampling.get("n", 1)), int(sampling["max_new_tokens"])
        attempts = [Attempt(i, hashlib.sha256(ids + str(i).encode()).digest()) for i in range(count)]
        for _ in self._turns(attempts):
            for attempt in attempts:
                if not attempt.finish:
                    attempt.extend(self.version, self.seed, longest, self.eos_id)
                    told(attempt)
        for attempt in attempts:
            if not attempt.finish:
                attempt.finish = "abort"
                told(attempt)
        return attempts

    def _turns(self, attempts: list[Attempt]) -> Iterator[None]:
        """One turn for each token, until all have ended or were aborted."""
        aborts = self._aborts
        while not all(attempt.finish for attempt in attempts):
            time.sleep(self.seconds_per_token)
            while not self._running.wait(0.05) and aborts == self._aborts:
                pass
            if aborts != self._aborts:
                return
            yield
