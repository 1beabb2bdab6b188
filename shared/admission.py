"""How many groups may be under way: released - dropped <= (version + max_staleness + 1) * groups_per_step."""

from shared.run_settings import RunSettings

LOOKAHEAD = 4
"""Steps that a run of kind sft or dpo prepares ahead; its rows depend on no policy."""
MIB = 2**20


def admission_limit(settings: RunSettings, weight_version: int) -> int:
    """The most groups that may be released and not dropped while the newest version is `weight_version`.

    With max_staleness = 0 a step's groups are released only when the version that they train is served:
    synchronous, on-policy training. The rule is AReaL's (Fu et al. 2025, equation 3), counted in groups.
    """
    lookahead = settings.rollout.max_staleness if settings.kind == "rl" else LOOKAHEAD
    size, last = settings.rollout.groups_per_step, settings.trainer.steps
    return min((weight_version + lookahead + 1) * size + settings.rollout.over_sampling, last * size)


def is_full(settings: RunSettings, stored_bytes: int) -> bool:
    """True while the attempts in Redis take more than the run allows."""
    return stored_bytes > settings.rollout.max_stored_mib * MIB
