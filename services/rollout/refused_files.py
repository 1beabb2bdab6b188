"""What is wrong with the files of a weight version, or with a host's copy of one -> a refusal by name."""

import re
from typing import ClassVar

from services.rollout.engine_calls import EngineError


class FilesRefused(EngineError):
    """The files do not make the version. The engine itself is sound, and keeps the weights that it has."""

    of_store: ClassVar[bool] = False
    """What the trainer wrote is at fault: it is to be written again, in full."""
    of_copy: ClassVar[bool] = False
    """This host's copy is of no use: it is to be made anew from the newest full version."""

    @property
    def name(self) -> str:
        """The kind of refusal, for events: stale_copy, ..."""
        return re.sub("(?<=[a-z])(?=[A-Z])", "_", type(self).__name__).lower()


class DamagedVersion(FilesRefused):
    """A file of the version does not have the hash that was written for it, or is of a format unknown here."""

    of_store = True


class MissingLink(FilesRefused):
    """The version, or one that it builds on, is not there."""

    of_store = True


class DamagedCopy(FilesRefused):
    """The host's copy does not have the hashes that it was marked with."""

    of_copy = True


class HalfWritten(FilesRefused):
    """Whoever wrote the host's copy last did not come to its end."""

    of_copy = True


class StaleCopy(FilesRefused):
    """The host's copy is of another run, or of an earlier trainer of this one; or of a version not built on."""

    of_copy = True


class WrongBase(FilesRefused):
    """A delta is for another version than the one that it is to be applied to."""

    of_copy = True


class AlreadyApplied(FilesRefused):
    """The host's copy holds the delta's version, or a later one."""


class FilesLate(FilesRefused):
    """The deadline passed before the files were there."""


class HostFailed(FilesRefused):
    """The host cannot hold a copy: no space, no permission."""


class StoreAway(FilesRefused):
    """The folder of the versions cannot be reached or read."""
