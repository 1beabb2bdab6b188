"""The turns of a run -> models that are on their device while they are trained, and in the host's memory otherwise."""

import asyncio
import time

import torch

from services.trainer.ask_engines import AskEngines, MemoryNotFree, Patience
from services.trainer.compute_thread import ComputeThread
from services.trainer.host_memory import HostMemory
from services.trainer.learner import Learner
from services.trainer.step_ledger import StepLedger
from services.trainer.team import Team
from shared.errors import RunRejected
from shared.service import Serving

FREE_POLL_S = 0.05
MIB = 2**20


class MemoryTurns:
    """See Memory of publish_versions: the trainer's side, with its models."""

    def __init__(self, engines: AskEngines, models: HostMemory, device: torch.device, compute: ComputeThread) -> None:
        """It is the trainer's turn when this is made."""
        self._engines, self._models, self._device, self._compute = engines, models, device, compute
        self._has_turn = True
        self.free_s = 30.0
        """Seconds from the last engine's answer until its memory is free: a process that was ended takes a moment."""

    async def take(self) -> None:
        """See Memory.

        Raises:
            MemoryNotFree: engines, or others who use the device, have left too little of it.
        """
        if not self._has_turn:
            await self._engines.ask()
            self._has_turn = True
        await self._until_free()
        await self._compute.run(self._models.come_back)

    async def give(self) -> None:
        """See Memory."""
        await self._compute.run(self._models.leave)
        if self._has_turn:
            await self._engines.give()
            self._has_turn = False

    async def _until_free(self) -> None:
        if self._device.type != "cuda" or not self._models.is_away:
            return
        needed, until = self._models.nbytes, time.monotonic() + self.free_s
        while (free := torch.cuda.mem_get_info(self._device)[0]) < needed:
            if time.monotonic() > until:
                raise MemoryNotFree(
                    f"{free // MIB} MiB of {self._device} are free, and the trainer's models need {needed // MIB} MiB;"
                    " see with nvidia-smi who else uses it"
                )
            await asyncio.sleep(FREE_POLL_S)


async def ask_for_memory(serving: Serving, ledger: StepLedger, team: Team) -> AskEngines | None:
    """Before a trainer loads anything to its device: have the engines give away what they have there.

    Returns:
        None in a run in which each keeps its memory.

    Raises:
        RunRejected: the trainer is one of several processes.
        MemoryNotFree: an engine has not given its memory away by the deadline.
    """
    settings, await_redis = serving.record.settings, serving.await_redis()
    weights = settings.weights
    if weights.memory == "kept" or settings.kind != "rl":
        return None
    if team.ranks.size > 1:
        raise RunRejected(
            f'weights.memory is "turns", which is for a trainer of one process, and this one has {team.ranks.size};'
            ' start one (trainer.processes of the deployment), or write memory = "kept"'
        )
    await await_redis(ledger.take_over)
    patience = Patience(weights.update_deadline_s, weights.enrol_deadline_s, serving.place.deployment.engine.count)
    engines = AskEngines(ledger, patience, await_redis, serving.place.log)
    await engines.ask()
    return engines


def take_turns(
    engines: AskEngines | None, learner: Learner, device: torch.device, compute: ComputeThread
) -> MemoryTurns | None:
    """For the models that were loaded since; None as for `engines`."""
    models = HostMemory(learner.tensors, device)
    return MemoryTurns(engines, models, device, compute) if engines is not None else None
