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
        **_staleness_by_place(rollouts, weight_version),
        "truncated_fraction": fmean(r.finish_reason == "length" for r in rollouts),
    }


def _staleness_by_place(rollouts: list[Rollout], weight_version: int) -> dict[str, float]:
    """Versions that passed while groups were generated (in flight), and after that until their step (in queue).

    The mean over tokens weighs every token alike, the other two every group.
    """
    spans: dict[int, list[tuple[int, int]]] = {}
    for rollout in rollouts:
        spans.setdefault(rollout.group_id, []).extend(span for span in rollout.weight_versions if span[1])
    versions = [[version for version, _ in group] or [weight_version] for group in spans.values()]
    behind = sum((weight_version - version) * count for group in spans.values() for version, count in group)
    tokens = sum(count for group in spans.values() for _, count in group)
    return {
        "staleness_token_mean": behind / max(tokens, 1),
        "staleness_in_flight_mean": fmean(max(group) - min(group) for group in versions),
        "staleness_in_queue_mean": fmean(weight_version - max(group) for group in versions),
    }
