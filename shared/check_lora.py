"""The adapters of a run -> the sentences about what does not go together, or has no effect."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from shared.check_trainer import changed

if TYPE_CHECKING:
    from shared.run_settings import RunSettings


def lora_problems(run: "RunSettings") -> Iterator[str]:
    """A sentence for each, with what to write instead; none for settings that go together."""
    lora, trainer = run.lora, run.trainer
    if not lora.rank:
        if given := changed(lora):
            yield f"lora.{given} has no effect with lora.rank = 0; write rank = 16, or leave it out"
        return
    if not lora.target_modules:
        yield 'lora.target_modules is empty, so nothing learns; write ["q_proj", "v_proj"], or leave it out'
    if trainer.kl.refresh_every:
        yield (
            "trainer.kl.refresh_every makes the reference a copy of the policy, and with lora.rank it is the policy"
            " without its adapters; leave it out"
        )
    if trainer.offload_frozen and not (trainer.kl.reference or trainer.distillation.teacher):
        yield (
            "trainer.offload_frozen has no effect: with lora.rank the reference is the policy without its adapters;"
            " leave it out"
        )
