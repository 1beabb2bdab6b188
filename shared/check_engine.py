"""The server arguments of a run -> the sentences about those that are not for a run to set."""

from collections.abc import Iterator, Mapping

RESERVED = {
    "model_path": "write model.path",
    "dtype": "write model.dtype",
    "trust_remote_code": "write model.trust_remote_code",
    "device": "write engine.device",
    "host": "set engine.host of the deployment",
    "port": "set engine.port of the deployment",
    "weight_version": "the trainer numbers the versions",
    "api_key": "router, trainer and gateway call the engine without a key; keep its port private",
    "admin_api_key": "the sidecar calls the engine without a key; keep its port private",
    "dp_size": "SGLang updates one data-parallel replica only; raise engine.count of the deployment",
    "pp_size": "SGLang cannot update the weights of pipeline stages; use tp_size",
    "enable_lora": 'write lora.rank, and lora.publish = "adapter"',
    "max_lora_rank": "write lora.rank",
    "lora_target_modules": "write lora.target_modules",
    "lora_paths": "engines get the adapters of the run",
    "max_loaded_loras": "the sidecar lets go of adapters that nobody uses",
    "nnodes": "an engine runs on one node; run more engines",
    "node_rank": "an engine runs on one node; run more engines",
}
"""ServerArgs fields that a run may not set, and what to do instead."""


def engine_problems(server_args: Mapping[str, object]) -> Iterator[str]:
    """A sentence for each. Whether SGLang has the others is known where it is installed."""
    for name in server_args:
        if name in RESERVED:
            yield f"engine.server_args.{name} cannot be set; {RESERVED[name]}"
