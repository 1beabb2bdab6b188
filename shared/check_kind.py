"""The sections of a run that has no rollouts -> the sentences about settings that would have no effect on it."""

from collections.abc import Iterator, Mapping

from shared.check_trainer import changed
from shared.settings import Settings

USED = {"rollout": {"groups_per_step", "max_stored_mib"}, "engine": {"device"}}
"""Of these sections, what a run of kind sft or dpo reads too."""


def unused_settings(kind: str, sections: Mapping[str, Settings]) -> Iterator[str]:
    """A sentence for each section with such settings."""
    for name, section in sections.items():
        given = [one for one in changed(section).split(", ") if one and one not in USED.get(name, ())]
        if given:
            yield (
                f"{name}.{', '.join(given)} has no effect in a run of kind {kind!r}, whose answers are in its rows;"
                " leave it out"
            )
