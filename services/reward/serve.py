"""One run -> its reward worker: everything is built here, then the worker runs until the run ends."""

from services.reward.attempts import Attempts
from services.reward.build_reward import open_reward
from services.reward.group_filter import build_filter
from services.reward.join_groups import GroupJoin
from services.reward.score_attempts import scoring
from services.reward.teacher.open_teacher import with_teacher
from services.reward.tell import teller
from services.reward.worker import Worker
from shared.scripts import Ledger
from shared.service import Serving
from shared.streams import Delivery, Stream
from shared.topology import EVENTS, Keys


async def serve(serving: Serving) -> None:
    """Score the attempts of a run until cancelled.

    Raises:
        RunRejected, PluginError: the reward, the teacher or the filter cannot be had.
    """
    settings, place = serving.record.settings, serving.place
    keep = build_filter(settings.reward.group_filter)
    await_redis = serving.await_redis()
    delivery = Delivery(settings.delivery.lease_s, settings.delivery.max_deliveries)
    attempts = Attempts(serving.redis, serving.run, place.name, delivery)
    ledger = Ledger(serving.redis, Keys(serving.run))
    groups = GroupJoin(ledger, keep)
    tell = teller(place.log, Stream(serving.redis, serving.run, EVENTS))
    may_reject = serving.record.state == "starting"
    async with (
        open_reward(serving.run, settings.reward, may_reject, tell) as own,
        with_teacher(own, settings, may_reject, tell) as reward,
    ):
        await await_redis(attempts.open)
        score = scoring(reward, groups, ledger, await_redis)
        worker = Worker(attempts, reward.available, score, groups, await_redis, tell)
        serving.ready()
        await worker.run()
