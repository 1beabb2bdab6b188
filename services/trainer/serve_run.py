"""One run of the registry -> trained, published, exported and ended: the trainer's part of `follow_runs`."""

import asyncio

from services.trainer.compute_thread import ComputeThread
from services.trainer.export_model import export_model
from services.trainer.prepare_run import OpenPublisher, PreparedRun, prepare_run
from services.trainer.publish_weights import Deadlines, WeightPublisher
from shared.runs import Runs
from shared.service import Serving
from shared.tasks import end


async def serve(serving: Serving) -> None:
    """Train a run until it is finished or stopped."""
    await train_run(serving, _open_publisher)


async def train_run(serving: Serving, open_publisher: OpenPublisher) -> None:
    """The same with any publisher of weights."""
    compute = ComputeThread(serving.record.settings.trainer.threads)
    try:
        prepared = await prepare_run(serving, compute, open_publisher)
        serving.ready()
        await _with_background(serving, prepared)
    finally:
        compute.close()


async def _with_background(serving: Serving, prepared: PreparedRun) -> None:
    work = [_train_and_end(serving, prepared), *(start() for start in prepared.background)]
    tasks = [asyncio.create_task(part) for part in work]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    finally:
        await end(*tasks)
        await prepared.close()


async def _train_and_end(serving: Serving, prepared: PreparedRun) -> None:
    loop, steps = prepared.loop, serving.record.settings.trainer.steps
    done = await loop.run(prepared.done)
    await prepared.gate.wait(done)
    await loop.compute.run(export_model, prepared.backend, prepared.folder / "export")
    state = "finished" if done == steps else "stopped"
    await Runs(serving.redis).move(serving.run, ("starting", "running", "stopping"), state)
    serving.place.log.info("run_ended", run=serving.run, state=state, step=done)


def _open_publisher(serving: Serving) -> WeightPublisher:
    weights, host = serving.record.settings.weights, serving.place.deployment.trainer.host
    deadlines = Deadlines(enrol_s=weights.enrol_deadline_s, update_s=weights.update_deadline_s)
    return WeightPublisher(serving.redis, serving.run, host, serving.place.log, weights.bucket_mib, deadlines)
