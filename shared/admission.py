"""How many groups may be under way: released - dropped <= (version + max_staleness + 1) * groups_per_step."""

from shared.run_settings import RunSettings

MIB = 2**20
SFT_LOOKAHEAD = 4
"""Steps that an sft run prepares ahead; its rows depend on no policy."""


def admission_limit(settings: RunSettings, weight_version: int) -> int:
    """The most groups that may be released and not dropped while the newest version is `weight_version`.

    With max_staleness = 0 a step's groups are released only when the version that they train is served:
    synchronous, on-policy training. The rule is AReaL's (Fu et al. 2025, equation 3), counted in groups.
    """
    lookahead = SFT_LOOKAHEAD if settings.kind == "sft" else settings.rollout.max_staleness
    size, last = settings.rollout.groups_per_step, settings.trainer.steps
    return min((weight_version + lookahead + 1) * size + settings.rollout.over_sampling, last * size)


def is_full(settings: RunSettings, stored_bytes: int) -> bool:
    """True while the attempts in Redis take more than the run allows."""
    return stored_bytes > settings.rollout.max_stored_mib * MIB
