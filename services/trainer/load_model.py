"""A Hugging Face folder -> a causal LM in float32 for packed training, or one sentence why not."""

import json
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.utils.logging import disable_progress_bar, set_verbosity_error

from services.trainer.packed_attention import NAME
from services.trainer.policy_model import PolicyModel
from services.trainer.token_scores import Entropy
from shared.errors import RunRejected


def load_policy(
    folder: Path, trust_remote_code: bool, temperature: float, device: torch.device, entropy: Entropy = Entropy.NONE
) -> PolicyModel:
    """The policy in float32 on `device`.

    Raises:
        RunRejected: no folder, no config.json, not a causal LM, quantised, incomplete, or not fit for packing.
    """
    policy = PolicyModel(load_causal_lm(folder, trust_remote_code, device), temperature, entropy)
    policy.check()
    return policy


def load_causal_lm(folder: Path, trust_remote_code: bool, device: torch.device) -> PreTrainedModel:
    """The model in float32 on `device`, with packed attention; RunRejected as `load_policy` says."""
    _check_folder(folder)
    disable_progress_bar()
    set_verbosity_error()
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=torch.float32,
            attn_implementation=NAME,
            trust_remote_code=trust_remote_code,
            local_files_only=True,
            ignore_mismatched_sizes=True,  # they are reported below, by name
            output_loading_info=True,
        )
    except (OSError, SafetensorError) as error:
        raise RunRejected(
            f"model.path {folder} cannot be read: {_first_line(error)}; give a whole checkpoint"
        ) from error
    except (ValueError, KeyError, ImportError) as error:
        raise RunRejected(
            f"model.path {folder} is not a causal language model that transformers can train: {_first_line(error)}"
        ) from error
    model, report = cast(tuple[PreTrainedModel, dict[str, Any]], loaded)
    _check_complete(folder, report)
    return cast(PreTrainedModel, cast(Any, model).to(device))


def choose_device(engine_device: str) -> torch.device:
    """cuda where there is one, unless the run's engines are to be on the CPU."""
    return torch.device("cuda" if engine_device != "cpu" and torch.cuda.is_available() else "cpu")


def _check_folder(folder: Path) -> None:
    if not folder.is_dir():
        raise RunRejected(f"model.path {folder} is not a folder; give the folder of a Hugging Face checkpoint")
    config = folder / "config.json"
    if not config.is_file():
        raise RunRejected(f"model.path {folder} has no config.json; give the folder of a Hugging Face checkpoint")
    try:
        tree = json.loads(config.read_text("utf-8"))
    except ValueError as error:
        raise RunRejected(f"{config} is not valid JSON ({error}); download the checkpoint again") from error
    if "quantization_config" in tree:
        raise RunRejected(f"model.path {folder} holds quantised weights; give the float32 or bfloat16 checkpoint")


def _check_complete(folder: Path, report: dict[str, Any]) -> None:
    """Weights that are not in the folder would be random, without a word."""
    for kind, said in (("missing_keys", "lacks"), ("mismatched_keys", "has the wrong shape for")):
        names = sorted(key if isinstance(key, str) else str(key[0]) for key in report.get(kind, ()))
        if names:
            shown = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
            raise RunRejected(f"model.path {folder} {said} {len(names)} tensors ({shown}); give a whole checkpoint")


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0].rstrip(".")
