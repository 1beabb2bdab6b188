"""Ready groups -> those that the next step trains: fifo, freshest, priority, or a user's function."""

from collections.abc import Callable, Sequence

from shared.errors import RunRejected
from shared.messages import GroupReady
from shared.plugins import load_function

Select = Callable[[list[GroupReady], int, int], list[int]]
"""(ready groups in order of arrival, groups of a step, version that the step starts from) -> ids, in training order."""
PARAMETERS = ("groups", "count", "weight_version")
EXAMPLE = "def select(groups: list[GroupReady], count: int, weight_version: int) -> list[int]:"


def load_selection(name: str) -> Select:
    """The selection of a run; PluginError if it names no function of the right signature."""
    built_in: dict[str, Select] = {"fifo": fifo, "freshest": freshest, "priority": priority}
    return built_in.get(name) or _checked(name, load_function(name, PARAMETERS, EXAMPLE, is_async=False))


def fifo(groups: list[GroupReady], count: int, weight_version: int) -> list[int]:
    """Those that arrived first."""
    del weight_version
    return [group.group_id for group in groups[:count]]


def freshest(groups: list[GroupReady], count: int, weight_version: int) -> list[int]:
    """Those whose oldest token is newest, then those whose newest is; equals in order of arrival."""
    del weight_version
    return _first(sorted(groups, key=lambda group: (-group.oldest_version, -group.newest_version)), count)


def priority(groups: list[GroupReady], count: int, weight_version: int) -> list[int]:
    """Those with the highest `priority` in the metadata of their row; equals in order of arrival."""
    del weight_version
    return _first(sorted(groups, key=lambda group: -group.priority), count)


def _first(groups: Sequence[GroupReady], count: int) -> list[int]:
    return [group.group_id for group in groups[:count]]


def _checked(name: str, select: Callable[..., object]) -> Select:
    """A user's function, whose answers are looked at; RunRejected says what is wrong with one."""

    def checked(groups: list[GroupReady], count: int, weight_version: int) -> list[int]:
        try:
            answer = select(list(groups), count, weight_version)
        except Exception as error:  # the function is a user's and can fail in every way
            raise RunRejected(f"rollout.selection {name} raised {error!r}; correct it and start a new run") from error
        problem = _problem(answer, [group.group_id for group in groups], count)
        if problem:
            raise RunRejected(
                f"rollout.selection {name} {problem}; it must return {count} ids of the groups it is given"
            )
        assert isinstance(answer, list)
        return [int(group_id) for group_id in answer]  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType]

    return checked


def _problem(answer: object, ready: list[int], count: int) -> str:
    if not isinstance(answer, list) or not all(isinstance(group_id, int) for group_id in answer):  # pyright: ignore[reportUnknownVariableType]
        return f"returned {answer!r:.200}, which is no list of group ids"
    ids: list[int] = answer
    if unknown := sorted(set(ids) - set(ready)):
        return f"returned group {unknown[0]}, which is not among the ready ones"
    if len(set(ids)) < len(ids):
        twice = next(group_id for group_id in ids if ids.count(group_id) > 1)
        return f"returned group {twice} twice"
    return "" if len(ids) == count else f"returned {len(ids)} groups"
