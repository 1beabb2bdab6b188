"""One run -> one feeder: a lease in Redis with a fencing token, which every release checks."""

import asyncio
import contextlib
import secrets

from redis.asyncio import Redis

from shared.errors import FencedOut
from shared.redis_connection import UNREACHABLE
from shared.topology import Keys

LEASE_S = 6.0
"""A gateway that was killed is replaced after this long."""

_TAKE = """
local holder = redis.call('GET', KEYS[1])
if holder and holder ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return 1
"""

_GIVE_BACK = """
if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('DEL', KEYS[1]) end
return 0
"""


class FeederLease:
    """The lease of one run as one gateway sees it. The token is new with every object."""

    def __init__(self, redis: Redis, keys: Keys, lease_s: float = LEASE_S) -> None:
        self.token = secrets.token_hex(16)
        self._key, self._lease_s = keys.feeder_lease, lease_s
        self._take = redis.register_script(_TAKE)
        self._give_back = redis.register_script(_GIVE_BACK)
        self._lost = False

    async def take(self) -> bool:
        """True if this gateway feeds the run from now on; False while another one does."""
        return bool(await self._take(keys=[self._key], args=[self.token, int(self._lease_s * 1000)]))

    async def keep(self) -> None:
        """Renew the lease until cancelled or lost to another gateway; reading rows may take longer than it lasts."""
        while not self._lost:
            await asyncio.sleep(self._lease_s / 3)
            with contextlib.suppress(*UNREACHABLE):  # the feeder meets the outage itself
                self._lost = not await self.take()

    def check(self) -> None:
        """FencedOut if another gateway has the lease."""
        if self._lost:
            raise FencedOut(f"{self._key}: another gateway feeds this run; this one stops feeding it")

    async def give_back(self) -> None:
        await self._give_back(keys=[self._key], args=[self.token])
