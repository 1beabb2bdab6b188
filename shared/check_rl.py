"""A run of kind rl, but for its trainer -> the sentences about what does not go together, or has no effect."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from shared.check_address import names_a_host
from shared.check_weights import quantization_problems, weights_problems
from shared.plugins import names_function

if TYPE_CHECKING:
    from shared.run_settings import RewardSettings, RolloutSettings, RunSettings

SELECTIONS = ("fifo", "freshest", "priority")
FILTERS = ("keep_all", "nonzero_std")


def rl_problems(run: "RunSettings") -> Iterator[str]:
    """A sentence for each, with what to write instead; none for settings that go together."""
    yield from _reward(run.reward)
    yield from _rollout(run.rollout)
    yield from weights_problems(run.weights)
    yield from quantization_problems(run)
    temperature = run.rollout.sampling.temperature
    if run.trainer.distillation.url and temperature not in (0, 1):
        yield (
            f"rollout.sampling.temperature is {temperature:g}, and the server at trainer.distillation.url tells"
            " log-probabilities at temperature 1; write temperature = 1.0, or trainer.distillation.teacher, which is"
            " asked at any"
        )
    if run.evaluates_only and not run.eval.datasets:
        yield (
            "trainer.steps is 0, which evaluates the initial model and trains nothing, and eval.datasets is empty;"
            ' write eval.datasets = ["held-out"], or the steps that the run trains'
        )
    yield from _lengths(run)
    if run.weights.transport == "ipc" and run.weights.staging != "auto":
        yield (
            f"weights.staging is {run.weights.staging!r}, and with weights.transport 'ipc' engines read copies that lie"
            " where the trainer's weights are; leave it out"
        )


def _reward(reward: "RewardSettings") -> Iterator[str]:
    if reward.type == "plugin" and not names_function(reward.plugin):
        yield f"reward.type is 'plugin' and reward.plugin is {reward.plugin!r}; write plugin = \"my_rewards:score\""
    if reward.type == "remote" and not names_a_host(reward.url, ("http", "https")):
        yield f"reward.url is {reward.url!r}; reward.type 'remote' needs an address such as http://HOST:PORT/"
    if reward.group_filter and reward.group_filter not in FILTERS and not names_function(reward.group_filter):
        yield f"reward.group_filter is {reward.group_filter!r}; write {', '.join(FILTERS)}, or module:function"
    used = {"plugin": ("plugin",), "remote": ("url", "batch_size", "max_tries")}
    for kind, names in used.items():
        given = [name for name in names if getattr(reward, name) != type(reward).model_fields[name].default]
        if given and kind != reward.type:
            yield (
                f'reward.{", ".join(given)} has no effect with reward.type {reward.type!r}; write type = "{kind}", or'
                " leave it out"
            )


def _lengths(run: "RunSettings") -> Iterator[str]:
    context = run.engine.server_args.get("context_length")
    asked = {"rollout": run.rollout.sampling} | ({"eval": run.eval.sampling} if run.eval.datasets else {})
    for section, sampling in asked.items():
        if isinstance(context, int) and sampling.max_new_tokens >= context:
            yield (
                f"{section}.sampling.max_new_tokens is {sampling.max_new_tokens}, which leaves no room for a prompt in"
                f" engine.server_args.context_length = {context}; write a smaller one"
            )


def _rollout(rollout: "RolloutSettings") -> Iterator[str]:
    if rollout.selection not in SELECTIONS and not names_function(rollout.selection):
        yield (
            f"rollout.selection is {rollout.selection!r}; write {', '.join(SELECTIONS)}, or module:function for your"
            " own"
        )
    if rollout.generate and not names_function(rollout.generate):
        yield f'rollout.generate is {rollout.generate!r}; write module:function, such as "my_agent:generate"'
    if rollout.staleness_policy == "wait" and rollout.over_sampling:
        yield (
            "rollout.over_sampling lets steps leave slow groups behind, and staleness_policy 'wait' waits for them;"
            ' write over_sampling = 0, or staleness_policy = "drop"'
        )
    if rollout.staleness_policy == "wait" and rollout.selection != "fifo":
        yield (
            f"rollout.selection is {rollout.selection!r}, but staleness_policy 'wait' trains groups in order"
            ' of their release; write selection = "fifo", or staleness_policy = "train" or "drop"'
        )
    if rollout.sampling.temperature == 0:
        yield "rollout.sampling.temperature is 0, so all attempts are equal; write 1.0"
