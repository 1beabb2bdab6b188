"""The rollouts of a step -> what they were like: rewards, lengths, staleness."""

from statistics import fmean

from shared.messages import Rollout


def batch_metrics(rollouts: list[Rollout], weight_version: int, is_rl: bool) -> dict[str, float]:
    """Means over attempts; staleness is `weight_version`, which the step starts from, minus an attempt's oldest one."""
    response = [len(r.token_ids) for r in rollouts]
    metrics: dict[str, float] = {
        "groups": len({r.group_id for r in rollouts}),
        "attempts": len(rollouts),
        "tokens": sum(response) + sum(len(r.prompt_ids) for r in rollouts),
        "response_tokens": sum(response),
        "response_length_mean": fmean(response),
    }
    return {**metrics, **_rl_metrics(rollouts, weight_version)} if is_rl else metrics


def _rl_metrics(rollouts: list[Rollout], weight_version: int) -> dict[str, float]:
    rewards = [r.reward or 0.0 for r in rollouts]
    mean = fmean(rewards)
    staleness = [weight_version - min((v for v, _ in r.weight_versions), default=weight_version) for r in rollouts]
    return {
        "reward_mean": mean,
        "reward_std": fmean((reward - mean) ** 2 for reward in rewards) ** 0.5,
        "staleness_mean": fmean(staleness),
        "staleness_max": max(staleness),
        "truncated_fraction": fmean(r.finish_reason == "length" for r in rollouts),
    }
