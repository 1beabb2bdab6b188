"""One attempt's tokens as they come: sampled by the policy, or added by a tool, each with its exact accounting."""

from collections.abc import Sequence
from dataclasses import dataclass

from services.rollout.grow_replies import grow_replies
from services.rollout.model_tokenizer import ModelTokenizer
from services.rollout.partial_attempt import PartialAttempt
from services.rollout.read_answers import Sample, append_spans
from services.rollout.refusals import GroupRejected
from services.rollout.sampler import Sampler
from shared.errors import PluginError
from shared.messages import Spans, Turns
from shared.run_settings import SamplingSettings


@dataclass(frozen=True, slots=True)
class Reply:
    """What the policy sampled in one turn."""

    text: str
    """Decoded, without the end-of-sequence token."""
    token_ids: list[int]
    finish_reason: str
    """stop, or length if the reply ran into the limit of tokens."""


class Session:
    """One attempt of a group. It keeps the token ids, logprobs, masks and weight versions itself."""

    def __init__(
        self,
        attempt: int,
        prompt_ids: list[int],
        sampling: SamplingSettings,
        sampler: Sampler,
        tokenizer: ModelTokenizer,
        partial: PartialAttempt | None = None,
    ) -> None:
        """`partial` records what is sampled and added, and gives it out again where it is recorded already."""
        self.attempt = attempt
        """Number of this attempt in its group, from 0."""
        self.finish_reason = ""
        """How the newest reply ended."""
        self._prompt_ids, self._sampling, self._sampler, self._tokenizer = prompt_ids, sampling, sampler, tokenizer
        self._partial = partial
        self._token_ids: list[int] = []
        self._logprobs: list[float] = []
        self._loss_mask: Spans = []
        self._weight_versions: Spans = []
        self._unsampled_start = 0

    async def sample(
        self,
        *,
        max_new_tokens: int | None = None,
        stop: list[str] | None = None,
        stop_token_ids: list[int] | None = None,
    ) -> Reply:
        """Let the policy go on from the prompt and everything recorded so far.

        Args:
            max_new_tokens: most tokens of this reply; all replies and added tokens together never exceed the run's.
            stop: strings that end the reply, instead of the run's; they stay in it.
            stop_token_ids: token ids that end the reply, instead of the run's.
        """
        left = self._sampling.max_new_tokens - len(self._token_ids)
        if left <= 0:
            self.finish_reason = "length"
            return Reply("", [], "length")
        given = {"stop": stop, "stop_token_ids": stop_token_ids}
        changes = {name: value for name, value in given.items() if value is not None}
        limit = left if max_new_tokens is None else min(left, max_new_tokens)
        sampling = self._sampling.model_copy(update={**changes, "max_new_tokens": limit})
        return self.record(await self._sample(self._prompt_ids + self._token_ids, sampling))

    def add(self, content: str | Sequence[int]) -> None:
        """Append what did not come from the policy, such as a tool's answer; it is read by the policy, not trained."""
        token_ids = self._tokenizer.encode(content) if isinstance(content, str) else list(content)
        if not token_ids:
            return
        if min(token_ids) < 0 or max(token_ids) >= self._tokenizer.vocabulary:
            raise PluginError(f"session.add: token ids are from 0 to {self._tokenizer.vocabulary - 1} for this model")
        if self._partial is not None:
            self._partial.add(token_ids)
        self._token_ids += token_ids
        self._logprobs += [0.0] * len(token_ids)
        self._loss_mask = append_spans(self._loss_mask, [(0, len(token_ids))])
        if self._weight_versions:
            self._count_as(self._weight_versions[-1][0], len(token_ids))
        else:
            self._unsampled_start += len(token_ids)

    def render(self, messages: Turns) -> str:
        """The text that the chat template puts after the newest reply for these messages, to be given to `add`."""
        ended = bool(self._token_ids) and self._token_ids[-1] == self._tokenizer.eos_id
        return self._tokenizer.following_text(messages, after_eos=ended)

    @property
    def text(self) -> str:
        """Everything after the prompt, decoded, without special tokens at the end."""
        return self._tokenizer.decode(self._token_ids)

    @property
    def token_ids(self) -> list[int]:
        """Everything after the prompt."""
        return list(self._token_ids)

    @property
    def logprobs(self) -> list[float]:
        return list(self._logprobs)

    @property
    def loss_mask(self) -> Spans:
        return list(self._loss_mask)

    @property
    def weight_versions(self) -> Spans:
        """By token; tokens that nobody sampled count as the sampled ones before them, at the start as those after."""
        return list(self._weight_versions)

    def record(self, sample: Sample) -> Reply:
        """Take over a continuation that the sampler made for exactly this session's tokens."""
        if self._unsampled_start and sample.weight_versions:
            self._count_as(sample.weight_versions[0][0], self._unsampled_start)
            self._unsampled_start = 0
        self._token_ids += sample.token_ids
        self._logprobs += sample.logprobs
        self._loss_mask = append_spans(self._loss_mask, [(1, len(sample.token_ids))])
        self._weight_versions = append_spans(self._weight_versions, sample.weight_versions)
        self.finish_reason = sample.finish_reason
        return Reply(self._tokenizer.decode(sample.token_ids), sample.token_ids, sample.finish_reason)

    def start_over(self) -> None:
        """Keep nothing of this attempt: the function failed on it, and would again."""
        if self._partial is not None:
            self._partial.start_over()

    async def _sample(self, input_ids: list[int], sampling: SamplingSettings) -> Sample:
        partial = self._partial
        if partial is None:
            return (await self._sampler.sample(input_ids, sampling, 1))[0]
        reply = partial.next_reply()
        try:
            await grow_replies(input_ids, sampling, self._sampler, [(partial, reply)])
        except GroupRejected:
            partial.forget_last()
            raise
        return reply.as_sample()

    def _count_as(self, version: int, tokens: int) -> None:
        self._weight_versions = append_spans(self._weight_versions, [(version, tokens)])
