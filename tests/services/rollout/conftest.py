"""What the worker's tests share: a byte tokenizer, a fake router, a log."""

import pytest

from services.rollout.model_tokenizer import ModelTokenizer
from services.trainer.tiny_model import byte_tokenizer
from shared.logs import Log
from tests.services.rollout.fake_router import FakeRouter


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
