"""The errors that a user can meet, each with a sentence that says what to write or do instead."""


class SluiceError(Exception):
    """A failure whose message is meant for the user; programs end with it, not with a traceback."""


class SettingsError(SluiceError):
    """A setting is unknown, of the wrong type, or does not go with another one."""


class WireError(SluiceError):
    """An entry of a stream does not decode to the message that the stream holds, or breaks a size limit."""


class PluginError(SluiceError):
    """A `module:attribute` does not load, or the function there has the wrong signature."""


class RunRejected(SluiceError):
    """A service cannot serve this run: model missing, plugin wrong, URL unreachable. The run fails with this reason."""


class RunConflict(SluiceError):
    """The run is in a state that does not allow what was asked."""


class FencedOut(SluiceError):
    """Another process took over the lease that this one held."""


class LedgerBehind(SluiceError):
    """Redis lost its last writes, so the ledger stands before what the trainer did; it goes back to a checkpoint."""
