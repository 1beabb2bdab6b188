"""One prompt -> the rollouts of its group: a session for each attempt, driven by the plugin or by the single turn."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import cast

import numpy as np

from services.rollout.grow_replies import all_of
from services.rollout.model_tokenizer import ModelTokenizer
from services.rollout.partial_group import PartialGroup, Partials
from services.rollout.refusals import GroupRejected
from services.rollout.sampler import Sampler
from services.rollout.session import Session
from services.rollout.single_turn import single_turn, single_turn_kept
from shared.errors import PluginError
from shared.messages import Prompt, Rollout, asked
from shared.plugins import load_function
from shared.run_settings import SamplingSettings
from shared.settings import validate
from shared.tasks import is_told_to_end

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

    def __init__(
        self,
        tokenizer: ModelTokenizer,
        sampler: Sampler,
        generate: Generate | None,
        worker: str,
        partials: Partials | None = None,
    ) -> None:
        """`partials` keeps the unfinished attempts of groups that take long; None keeps nothing."""
        self._tokenizer, self._sampler, self._generate, self._worker = tokenizer, sampler, generate, worker
        self._partials = partials

    async def generate(self, prompt: Prompt) -> list[Rollout]:
        """All attempts of the group.

        Raises:
            GroupRejected: it can never be generated.
            Superseded: another worker has the group now.
        """
        started = time.monotonic()
        sampling = validate(SamplingSettings, prompt.sampling, "the sampling of the prompt")
        partials = self._partials_for(prompt)
        group = await partials.take_over(prompt) if partials else None
        prompt_ids = self._tokenizer.encode(self._tokenizer.prompt_text(prompt.prompt))
        self._check(prompt_ids)
        kept = group.attempts if group else [None] * prompt.group_size
        sessions = [
            Session(attempt, prompt_ids, sampling, self._sampler, self._tokenizer, partial)
            for attempt, partial in enumerate(kept)
        ]
        work = self._texts(prompt, prompt_ids, sampling, sessions, group)
        texts = await group.keep(work) if group else await work
        seconds, ids = time.monotonic() - started, np.asarray(prompt_ids, np.int32)
        return [
            self._rollout(prompt, ids, session, text, seconds) for session, text in zip(sessions, texts, strict=True)
        ]

    def forget(self, prompt: Prompt) -> tuple[str, ...]:
        """The keys that are of no use once the group is forwarded."""
        partials = self._partials_for(prompt)
        return partials.keys(prompt.group_id) if partials else ()

    def _partials_for(self, prompt: Prompt) -> Partials | None:
        """None for short answers: to generate them again costs less than to store them as they grow."""
        partials = self._partials
        if partials is None or not partials.tokens:
            return None
        longest = int(prompt.sampling.get("max_new_tokens", SamplingSettings().max_new_tokens))
        return partials if self._generate is not None or longest > partials.tokens else None

    async def _texts(
        self,
        prompt: Prompt,
        prompt_ids: list[int],
        sampling: SamplingSettings,
        sessions: list[Session],
        group: PartialGroup | None,
    ) -> Sequence[str | None]:
        """What the reward reads of each attempt, once its session has it."""
        if self._generate is not None:
            return await _each_attempt(self._generate, prompt, sessions)
        if group is None:
            return await single_turn(prompt_ids, sampling, self._sampler, sessions)
        kept = list(zip(sessions, group.attempts, strict=True))
        return await single_turn_kept(prompt_ids, sampling, self._sampler, kept)

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
            **asked(prompt),
            attempt=session.attempt,
            prompt_ids=prompt_ids,
            token_ids=np.asarray(session.token_ids, np.int32),
            logprobs=np.asarray(session.logprobs, np.float32),
            loss_mask=session.loss_mask,
            weight_versions=session.weight_versions,
            finish_reason=session.finish_reason,
            text=session.text if text is None else text,
            worker=self._worker,
            seconds=seconds,
        )


async def _each_attempt(generate: Generate, prompt: Prompt, sessions: list[Session]) -> list[str | None]:
    """Run the plugin for all attempts at once; the first failure ends the others and is raised."""
    return await all_of([_one(generate, prompt, session) for session in sessions])


async def _one(generate: Generate, prompt: Prompt, session: Session) -> str | None:
    try:
        return await generate(prompt, session)
    except asyncio.CancelledError as error:
        if is_told_to_end():
            raise
        raise PluginError("the plugin cancelled its own attempt; let it return or raise instead") from error
    except Exception:
        session.start_over()
        raise
