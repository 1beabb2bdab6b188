"""Server arguments are those of the installed SGLang; wrong names, models and devices are refused with a hint."""

import importlib.util
import json
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

import pytest

from services.rollout.engine_arguments import EnginePlan, find_device, plan_engine, server_arguments
from shared.errors import RunRejected
from shared.lora_settings import LoraSettings
from shared.messages import TensorSpec
from shared.run_settings import EngineSettings, ModelSettings, WeightSettings
from shared.safetensors_file import header_of


@pytest.fixture
def model(tmp_path: Path) -> ModelSettings:
    (tmp_path / "config.json").write_text("{}")
    return ModelSettings(path=str(tmp_path))


def plan(model: ModelSettings, mode: str = "retract", **server_args: Any) -> EnginePlan:
    engine = EngineSettings.model_validate({"device": "cpu", "server_args": server_args, "update_mode": mode})
    return plan_engine(model, engine, "127.0.0.1", 8310, 0)


def test_the_fields_of_server_args_are_found_without_importing_sglang() -> None:
    assert {"mem_fraction_static", "tp_size", "attention_backend", "disable_cuda_graph"} <= server_arguments()


def test_any_server_argument_passes_through_and_wins_over_the_cpu_default(model: ModelSettings) -> None:
    arguments = plan(model, max_running_requests=3, schedule_policy="lpm").arguments
    assert (arguments["max_running_requests"], arguments["schedule_policy"]) == (3, "lpm")
    assert (arguments["attention_backend"], arguments["dtype"]) == ("torch_native", "float32")


def test_an_engine_of_adapters_is_launched_for_their_shape_and_an_engine_of_whole_models_without(
    model: ModelSettings,
) -> None:
    engine, lora = EngineSettings(device="cpu"), LoraSettings(rank=16, publish="adapter", target_modules=["o_proj"])
    arguments = plan_engine(model, engine, "127.0.0.1", 8310, 0, lora=lora).arguments
    assert (arguments["enable_lora"], arguments["max_lora_rank"]) == (True, 16)
    assert (arguments["lora_target_modules"], arguments["lora_backend"]) == (["o_proj"], "torch_native")
    assert {"enable_lora", "max_lora_rank", "lora_target_modules", "lora_backend"} <= server_arguments()
    whole = plan_engine(model, engine, "127.0.0.1", 8310, 0, lora=LoraSettings(rank=16)).arguments
    assert not [name for name in whole if "lora" in name]


def test_an_unknown_server_argument_is_refused_with_the_closest_name(model: ModelSettings) -> None:
    with pytest.raises(RunRejected, match="did you mean mem_fraction_static"):
        plan(model, mem_fraction_statc=0.5)


def test_a_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunRejected, match=r"no config\.json"):
        plan(ModelSettings(path=str(tmp_path)))


def test_in_place_updates_run_without_a_prefix_cache(model: ModelSettings) -> None:
    assert plan(model, "in_place").arguments["disable_radix_cache"] is True
    assert "disable_radix_cache" not in plan(model).arguments


def test_streams_are_incremental_unless_the_run_says_otherwise(model: ModelSettings) -> None:
    arguments = plan(model).arguments
    assert (arguments["incremental_streaming_output"], arguments["stream_interval"]) == (True, 32)
    assert plan(model, stream_interval=1).arguments["stream_interval"] == 1


def test_the_device_is_found_by_its_device_files(tmp_path: Path) -> None:
    assert find_device("auto", tmp_path) == "cpu"
    with pytest.raises(RunRejected, match="no NVIDIA GPU"):
        find_device("cuda", tmp_path)
    (tmp_path / "nvidia0").touch()
    assert find_device("auto", tmp_path) == "cuda"
    assert find_device("cpu", tmp_path) == "cpu"


def test_equal_settings_make_equal_plans(model: ModelSettings) -> None:
    assert plan(model, tp_size=1) == plan(model, tp_size=1)
    assert plan(model, tp_size=1) != plan(model, tp_size=2)


def test_an_engine_for_versions_in_fp8_has_room_for_them_and_loads_nothing(
    model: ModelSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.rollout.engine_arguments.find_device", lambda wanted: "cuda")
    specs = [TensorSpec(f"model.layers.0.mlp.{n}_proj.weight", "float32", [256, 128]) for n in ("gate", "up")]
    head = TensorSpec("lm_head.weight", "float32", [64, 128])
    (Path(model.path) / "model.safetensors").write_bytes(header_of([*specs, head]))
    engine = EngineSettings(server_args={"json_model_override_args": '{"max_position_embeddings": 64}'})
    fp8 = WeightSettings(quantization="fp8")
    arguments = plan_engine(model, engine, "127.0.0.1", 8310, 0, fp8).arguments
    assert arguments["load_format"] == "dummy"
    assert json.loads(arguments["json_model_override_args"]) == {
        "max_position_embeddings": 64,
        "quantization_config": {
            "quant_method": "fp8",
            "activation_scheme": "dynamic",
            "fmt": "e4m3",
            "weight_block_size": [128, 128],
            "modules_to_not_convert": ["lm_head"],
        },
    }
    assert "load_format" not in plan_engine(model, engine, "127.0.0.1", 8310, 0, WeightSettings()).arguments


def test_versions_in_fp8_are_refused_where_no_engine_could_take_them(
    model: ModelSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    fp8 = WeightSettings(quantization="fp8")
    with pytest.raises(RunRejected, match="serves on a GPU, and this engine is on a CPU"):
        plan_engine(model, EngineSettings(device="cpu"), "127.0.0.1", 8310, 0, fp8)
    monkeypatch.setattr("services.rollout.engine_arguments.find_device", lambda wanted: "cuda")
    with pytest.raises(RunRejected, match="has no safetensors files"):
        plan_engine(model, EngineSettings(), "127.0.0.1", 8310, 0, fp8)
    (Path(model.path) / "model.safetensors").write_bytes(b"")
    with pytest.raises(RunRejected, match=r"cannot be read: .* give a whole checkpoint"):
        plan_engine(model, EngineSettings(), "127.0.0.1", 8310, 0, fp8)


def test_an_engine_that_takes_turns_is_able_to_give_its_gpu_away(
    model: ModelSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    turns = WeightSettings(transport="ipc", memory="turns")
    on_cpu = plan_engine(model, EngineSettings(device="cpu"), "127.0.0.1", 8310, 0, turns)
    assert on_cpu == plan(model)  # where nothing can be given away
    monkeypatch.setattr("services.rollout.engine_arguments.find_device", lambda _: "cuda")
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(RunRejected, match=r'pip install torch-memory-saver\), or write memory = "kept"'):
        plan_engine(model, EngineSettings(), "127.0.0.1", 8310, 0, turns)
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: ModuleSpec("torch_memory_saver", None))
    plan_of_turns = plan_engine(model, EngineSettings(), "127.0.0.1", 8310, 0, turns)
    kept = plan_engine(model, EngineSettings(), "127.0.0.1", 8310, 0)
    assert plan_of_turns.arguments == {**kept.arguments, "enable_memory_saver": True}
    assert plan_of_turns.environment["SGLANG_MEMORY_SAVER_CUDA_GRAPH"] == "1"
