"""What the worker's tests share: a byte tokenizer, a fake router, a log, a real engine."""

import time
from collections.abc import Generator
from pathlib import Path

import httpx
import pytest

from benchmarks.free_ports import free_port
from services.rollout.engine_arguments import plan_engine
from services.rollout.launch_engine import EngineProcess
from services.rollout.model_tokenizer import ModelTokenizer
from services.trainer.tiny_model import byte_tokenizer, write_tiny_model
from shared.logs import Log
from shared.run_settings import EngineSettings, ModelSettings
from tests.services.rollout.fake_router import FakeRouter

STARTED_S = 180


@pytest.fixture(scope="session")
def tokenizer() -> ModelTokenizer:
    """256 bytes, then <|endoftext|>, <|im_start|> and <|im_end|>, which ends answers."""
    return ModelTokenizer(byte_tokenizer())


@pytest.fixture
def log() -> Log:
    return Log("test")


@pytest.fixture
async def router():
    async with FakeRouter().serving() as fake:
        yield fake


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny model."""
    folder = tmp_path_factory.mktemp("model")
    write_tiny_model(folder, seed=0)
    return folder


@pytest.fixture(scope="module")
def engine(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Generator[str]:
    """The address of a real SGLang that serves the tiny model."""
    plan = plan_engine(ModelSettings(path=str(model)), EngineSettings(device="cpu"), "127.0.0.1", free_port(), 0)
    process = EngineProcess(plan, tmp_path_factory.mktemp("engine") / "engine.log")
    try:
        _wait_healthy(process)
        yield plan.url
    finally:
        process.stop()


def _wait_healthy(process: EngineProcess) -> None:
    deadline = time.monotonic() + STARTED_S
    while True:
        assert process.alive, process.log_end()
        assert time.monotonic() < deadline, process.log_end()
        try:
            if httpx.get(f"{process.plan.url}/health", timeout=5).status_code == 200:
                return
        except httpx.TransportError:
            time.sleep(0.2)
