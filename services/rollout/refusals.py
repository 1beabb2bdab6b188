"""Why a group is not generated: nobody answers (try again), or the answer will always be no (drop it)."""

from shared.errors import SluiceError


class EngineUnavailable(SluiceError):
    """Router or engine cannot be reached, failed, or answered nonsense; the same request may work later."""


class GroupRejected(SluiceError):
    """This prompt can never be generated: too long for the engine, no tokens, a chat template that refuses it."""


class Superseded(SluiceError):
    """Another worker took the group over while this one was silent, or the group is settled; its work is not needed."""
