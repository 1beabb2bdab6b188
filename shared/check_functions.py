"""The settings that name a function -> the sentences about names that are neither built in nor `module:function`."""

from collections.abc import Iterator

from shared.settings import Settings

BUILT_IN = {
    "rollout.selection": ("fifo", "freshest", "priority"),
    "rollout.generate": ("",),
    "reward.plugin": ("",),
    "reward.group_filter": ("", "keep_all", "nonzero_std"),
}
"""Those settings, with what they take beside `module:function`."""


def function_problems(rollout: Settings, reward: Settings) -> Iterator[str]:
    sections = {"rollout": rollout, "reward": reward}
    for setting, names in BUILT_IN.items():
        section, _, name = setting.partition(".")
        given: str = getattr(sections[section], name)
        if given not in names and ":" not in given:
            choices = [one for one in names if one]
            yield f"{setting} is {given!r}; write {', '.join([*choices, 'module:function'])}"
