"""The adapters of a run -> the sentences about what does not go together, or has no effect."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from shared.check_trainer import changed

if TYPE_CHECKING:
    from shared.run_settings import RunSettings

FUSED = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))
"""SGLang serves no adapter that has only some of these, or makes them up."""


def lora_problems(run: "RunSettings") -> Iterator[str]:
    """A sentence for each, with what to write instead; none for settings that go together."""
    lora, trainer = run.lora, run.trainer
    if not lora.rank:
        if given := changed(lora):
            yield f"lora.{given} has no effect with lora.rank = 0; write rank = 16, or leave it out"
        return
    if not lora.target_modules:
        yield 'lora.target_modules is empty, so nothing learns; write ["q_proj", "v_proj"], or leave it out'
    if len(set(lora.target_modules)) < len(lora.target_modules):
        yield f"lora.target_modules names a layer twice: {', '.join(lora.target_modules)}; name each once"
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
    if lora.is_served:
        yield from _served(run)


def _served(run: "RunSettings") -> Iterator[str]:
    """Of adapters that engines serve beside the model."""
    if run.kind != "rl":
        yield f"lora.publish has no effect in a run of kind {run.kind!r}, which has no engines; leave it out"
        return
    if run.weights.transport != "disk":
        yield (
            f'lora.publish is "adapter", and weights.transport "{run.weights.transport}" carries whole models; write'
            ' weights.transport = "disk", or lora.publish = "merged"'
        )
    if run.weights.quantization != "none":
        yield (
            f'weights.quantization is "{run.weights.quantization}", and engines keep the model that adapters are for as'
            ' it is; write quantization = "none", or lora.publish = "merged"'
        )
    if "bucket_mib" in changed(run.weights).split(", "):
        yield (
            'weights.bucket_mib has no effect with lora.publish = "adapter", whose versions are one file each; leave it'
            " out"
        )
    if run.engine.server_args.get("load_format") == "dummy":
        yield (
            "engine.server_args.load_format is 'dummy', and engines that get adapters alone get the model from"
            ' model.path and nowhere else; leave it out, or write lora.publish = "merged"'
        )
    if run.engine.update_mode != "retract":
        yield (
            f"engine.update_mode is {run.engine.update_mode!r}, and no request waits for an adapter, or is touched by"
            " one; leave it out"
        )
    for layers in FUSED:
        given = [name for name in layers if name in run.lora.target_modules]
        if given and len(given) < len(layers):
            yield (
                f"lora.target_modules has {', '.join(given)}, and engines keep {', '.join(layers)} as one layer; write"
                ' all of them or none, or lora.publish = "merged"'
            )
