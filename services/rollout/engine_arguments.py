"""Engine settings of a run -> the ServerArgs and environment of one SGLang server, every name checked beforehand."""

import ast
import difflib
import functools
import importlib.util
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from services.rollout.fp8_engine import fp8_arguments
from shared.check_engine import engine_problems
from shared.errors import RunRejected
from shared.loopback import is_loopback
from shared.lora_settings import LoraSettings
from shared.run_settings import EngineSettings, ModelSettings, WeightSettings

# What makes a small model fast on the CPU, in one place; engine.server_args of a run overrides each of them.
CPU_ARGUMENTS: dict[str, Any] = {
    "attention_backend": "torch_native",
    "sampling_backend": "pytorch",
    "disable_cuda_graph": True,
    "disable_overlap_schedule": True,
    "skip_server_warmup": True,
    "sleep_on_idle": True,  # an idle scheduler would burn a core
    "max_total_tokens": 65536,  # otherwise the cache takes most of the machine's memory
    "max_running_requests": 64,
}
STREAM_ARGUMENTS: dict[str, Any] = {"incremental_streaming_output": True, "stream_interval": 32}
"""A stream would otherwise repeat all tokens at every token: its bytes would grow with the square of the answer."""
CPU_ENVIRONMENT = {"SGLANG_USE_CPU_ENGINE": "1", "OMP_NUM_THREADS": "1"}
CUDA_ENVIRONMENT = {"NCCL_CUMEM_ENABLE": "0", "NCCL_NVLS_ENABLE": "0"}
"""Both sides of a weight update must agree on these; the trainer sets the same."""
SAVER_ENVIRONMENT = {"SGLANG_MEMORY_SAVER_CUDA_GRAPH": "1"}
"""Graphs of SGLang keep their memory otherwise, whatever else is given away."""
ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    # The health check would otherwise generate a token, and fail for as long as weights are being updated.
    "SGLANG_ENABLE_HEALTH_ENDPOINT_GENERATION": "false",
    # Where one of its processes dies, the server would write dumps for 65 seconds before it ends and is started again.
    "SGLANG_PYSPY_DUMP_BEFORE_CRASH": "false",
    "SGLANG_CUDA_COREDUMP_BEFORE_CRASH": "false",
}


@dataclass(frozen=True, slots=True)
class EnginePlan:
    """One SGLang server as it is to be launched. Two runs with equal plans can share a process."""

    host: str
    port: int
    device: str
    arguments: dict[str, Any]
    environment: dict[str, str] = field(default_factory=dict[str, str])

    @property
    def url(self) -> str:
        return f"http://{self.host}:{self.port}"

    @property
    def ranks(self) -> int:
        """Processes that hold a part of the weights."""
        return int(self.arguments.get("tp_size", 1))

    @property
    def shares_prefixes(self) -> bool:
        """Whether a request may use what another one has cached."""
        return not self.arguments.get("disable_radix_cache")


def plan_engine(
    model: ModelSettings,
    engine: EngineSettings,
    host: str,
    port: int,
    index: int,
    weights: WeightSettings | None = None,
    lora: LoraSettings | None = None,
) -> EnginePlan:
    """The plan of engine number `index` of this node.

    Args:
        weights: how versions come, if they may be quantised, or the engine has to give its GPU's memory away in turns.

    Raises:
        RunRejected: no such model or device, or a server argument that SGLang does not have; or it
            is to give memory away, and what it needs for that is not installed.
    """
    folder = Path(model.path).absolute()
    if not (folder / "config.json").exists():
        raise RunRejected(f"model.path is {model.path!r}, where there is no config.json; give a Hugging Face folder")
    device = find_device(engine.device)
    _check_names(engine.server_args)
    tp_size = int(engine.server_args.get("tp_size", 1))
    defaults = CPU_ARGUMENTS if device == "cpu" else {"base_gpu_id": index * tp_size}
    if engine.update_mode == "in_place":
        # The cache cannot be flushed around requests that keep running, and a later request must not reuse it.
        defaults = {**defaults, "disable_radix_cache": True}
    extra = CPU_ENVIRONMENT if device == "cpu" else CUDA_ENVIRONMENT
    if weights is not None and weights.memory == "turns" and device != "cpu":
        _check_saver()
        defaults, extra = {**defaults, "enable_memory_saver": True}, {**extra, **SAVER_ENVIRONMENT}
    arguments = {
        "model_path": str(folder),
        "dtype": model.dtype,
        "trust_remote_code": model.trust_remote_code,
        "device": device,
        "host": host,
        "port": port,
        **STREAM_ARGUMENTS,
        **defaults,
        **(_of_adapters(lora, device) if lora is not None and lora.is_served else {}),
        **engine.server_args,
        **_of_quantised(model, engine, device, weights),
    }
    loopback = {"GLOO_SOCKET_IFNAME": "lo"} if is_loopback(host) else {}
    return EnginePlan(host, port, device, arguments, {**ENVIRONMENT, **extra, **loopback})


def _of_adapters(lora: LoraSettings, device: str) -> dict[str, Any]:
    """What an engine of adapters is launched with: all of them have one shape, and none is there at first."""
    shape = {"enable_lora": True, "max_lora_rank": lora.rank, "lora_target_modules": lora.target_modules}
    return {**shape, "lora_backend": "torch_native"} if device == "cpu" else shape


def _of_quantised(
    model: ModelSettings, engine: EngineSettings, device: str, weights: WeightSettings | None
) -> dict[str, Any]:
    if weights is None or weights.quantization == "none":
        return {}
    if device == "cpu":
        raise RunRejected(
            'weights.quantization is "fp8", which SGLang serves on a GPU, and this engine is on a CPU; write'
            ' quantization = "none"'
        )
    return fp8_arguments(model, engine.server_args, weights)


def find_device(wanted: str, devices: Path = Path("/dev")) -> str:
    """`cpu` or `cuda`; RunRejected if a GPU is wanted where there is none."""
    has_gpu = any(devices.glob("nvidia[0-9]*"))
    if wanted == "cuda" and not has_gpu:
        raise RunRejected("engine.device is 'cuda', but this machine has no NVIDIA GPU; write 'auto' or 'cpu'")
    if wanted == "auto":
        return "cuda" if has_gpu else "cpu"
    return wanted


@functools.cache
def server_arguments() -> frozenset[str]:
    """The ServerArgs fields of the installed SGLang, read from its source: importing it would take torch along.

    Raises:
        RunRejected: SGLang is not installed.
    """
    spec = importlib.util.find_spec("sglang")
    if spec is None or not spec.submodule_search_locations:
        raise RunRejected("SGLang is not installed where the engine sidecar runs; install sglang there")
    source = Path(next(iter(spec.submodule_search_locations))) / "srt"
    names = {"model_path"}
    # Newer releases assemble the class from one class for each group of fields.
    for file in (source / "server_args.py", *sorted((source / "arg_groups" / "fields").glob("*.py"))):
        names |= _fields(ast.parse(file.read_text("utf-8")), any_class=file.name != "server_args.py")
    return frozenset(names)


def _fields(tree: ast.Module, any_class: bool) -> set[str]:
    classes = [
        node for node in tree.body if isinstance(node, ast.ClassDef) and (any_class or node.name == "ServerArgs")
    ]
    fields = [item.target for each in classes for item in each.body if isinstance(item, ast.AnnAssign)]
    return {name.id for name in fields if isinstance(name, ast.Name) and not name.id.startswith("_")}


def _check_saver() -> None:
    if importlib.util.find_spec("torch_memory_saver") is None:
        raise RunRejected(
            'weights.memory is "turns", and torch-memory-saver, by which SGLang gives memory away, is not installed'
            " where the engine sidecar runs; install it there (pip install torch-memory-saver), or write"
            ' memory = "kept"'
        )


def _check_names(given: dict[str, Any]) -> None:
    for problem in engine_problems(given):  # of a run that was stored before its settings were refused for it
        raise RunRejected(problem)
    for name in given:
        if name not in server_arguments():
            close = difflib.get_close_matches(name, server_arguments(), n=1, cutoff=0.5)
            hint = f"did you mean {close[0]}?" if close else "see `python -m sglang.launch_server --help`"
            raise RunRejected(f"engine.server_args.{name} is no argument of the installed SGLang; {hint}")


def encode(arguments: dict[str, Any]) -> str:
    """The arguments as the engine's process takes them."""
    return json.dumps(arguments, separators=(",", ":"))
