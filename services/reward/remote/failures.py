"""Why a call to a service brought nothing: the service is to blame, or what it was asked."""


class Unavailable(Exception):
    """The service cannot be reached or cannot work now; trying again later is right."""


class Rejected(Exception):
    """The service answered that something is wrong with this batch, or answered nonsense."""
