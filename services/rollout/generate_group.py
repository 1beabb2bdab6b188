"""One prompt -> the rollouts of its group: a session for each attempt, driven by the plugin or by the single turn."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import cast

import numpy as np

from services.rollout.model_tokenizer import ModelTokenizer
from services.rollout.refusals import GroupRejected
from services.rollout.sampler import Sampler
from services.rollout.session import Session
from services.rollout.single_turn import single_turn
from shared.errors import PluginError
from shared.messages import Prompt, Rollout
from shared.plugins import load_function
from shared.run_settings import SamplingSettings
from shared.settings import validate

Generate = Callable[[Prompt, Session], Awaitable[str | None]]
"""A user's way to make one attempt. It may return the text that the reward sees; None takes all that was recorded."""
EXAMPLE = "async def generate(prompt: Prompt, session: Session) -> str | None"


def load_generate(path: str) -> Generate | None:
    """The user's function, or None for the built-in single turn; PluginError if it does not load or fit."""
    if not path:
        return None
    return cast(Generate, load_function(path, ("prompt", "session"), EXAMPLE, is_async=True))


class GroupGenerator:
    """Generates groups, one call each; any number of calls may be under way."""

    def __init__(self, tokenizer: ModelTokenizer, sampler: Sampler, generate: Generate | None, worker: str) -> None:
        self._tokenizer, self._sampler, self._generate, self._worker = tokenizer, sampler, generate, worker

    async def generate(self, prompt: Prompt) -> list[Rollout]:
        """All attempts of the group; GroupRejected if it can never be generated."""
        started = time.monotonic()
        sampling = validate(SamplingSettings, prompt.sampling, "the sampling of the prompt")
        prompt_ids = self._tokenizer.encode(self._tokenizer.prompt_text(prompt.prompt))
        self._check(prompt_ids)
        sessions = [
            Session(attempt, prompt_ids, sampling, self._sampler, self._tokenizer)
            for attempt in range(prompt.group_size)
        ]
        if self._generate is None:
            texts: list[str | None] = [*await single_turn(prompt_ids, sampling, self._sampler, sessions)]
        else:
            texts = await _each_attempt(self._generate, prompt, sessions)
        seconds, ids = time.monotonic() - started, np.asarray(prompt_ids, np.int32)
        return [
            self._rollout(prompt, ids, session, text, seconds) for session, text in zip(sessions, texts, strict=True)
        ]

    def _check(self, prompt_ids: list[int]) -> None:
        # an engine that gets a token id beyond its embedding dies, and every request in it with it
        if not prompt_ids:
            raise GroupRejected("the prompt has no tokens")
        if max(prompt_ids) >= self._tokenizer.vocabulary:
            raise GroupRejected(f"token id {max(prompt_ids)} of the prompt is beyond the model's vocabulary")

    def _rollout(
        self,
        prompt: Prompt,
        prompt_ids: "np.ndarray[tuple[int], np.dtype[np.int32]]",
        session: Session,
        text: str | None,
        seconds: float,
    ) -> Rollout:
        if not session.weight_versions:
            raise PluginError(f"attempt {session.attempt} sampled no token; the plugin has to await session.sample()")
        return Rollout(
            group_id=prompt.group_id,
            attempt=session.attempt,
            group_size=prompt.group_size,
            kind=prompt.kind,
            dataset=prompt.dataset,
            row=prompt.row,
            prompt=prompt.prompt,
            label=prompt.label,
            metadata=prompt.metadata,
            prompt_ids=prompt_ids,
            token_ids=np.asarray(session.token_ids, np.int32),
            logprobs=np.asarray(session.logprobs, np.float32),
            loss_mask=session.loss_mask,
            weight_versions=session.weight_versions,
            finish_reason=session.finish_reason,
            text=session.text if text is None else text,
            worker=self._worker,
            seconds=seconds,
            pinned_version=prompt.pinned_version,
        )


async def _each_attempt(generate: Generate, prompt: Prompt, sessions: list[Session]) -> list[str | None]:
    """Run the plugin for all attempts at once; the first failure ends the others and is raised."""
    try:
        async with asyncio.TaskGroup() as attempts:
            tasks = [attempts.create_task(_one(generate, prompt, session)) for session in sessions]
    except BaseExceptionGroup as failed:
        raise failed.exceptions[0] from None
    if any(task.cancelled() for task in tasks):
        raise PluginError("the plugin cancelled its own attempt; let it return or raise instead")
    return [task.result() for task in tasks]


async def _one(generate: Generate, prompt: Prompt, session: Session) -> str | None:
    return await generate(prompt, session)
