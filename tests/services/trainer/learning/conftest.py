"""The words, and the models that learning begins with; each is trained once."""

from pathlib import Path

import pytest

from benchmarks.learning.learn import Progress, demonstrate, words_run
from benchmarks.learning.words import Words, make_words
from services.trainer.tiny_model import TinyShape, write_tiny_model

SHAPE = TinyShape(hidden=32, layers=2, heads=2, kv_heads=1, intermediate=64, head_dim=16)


@pytest.fixture(scope="session")
def words() -> Words:
    return make_words(0)


@pytest.fixture(scope="session")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the random model `blank`."""
    folder = tmp_path_factory.mktemp("learning")
    write_tiny_model(folder / "blank", 0, SHAPE)
    return folder


@pytest.fixture(scope="session")
def expert(home: Path, words: Words) -> tuple[Path, Progress]:
    """A model that has seen right answers only, and how it came to that."""
    return _shown(home, words, 1.0, 120)


@pytest.fixture(scope="session")
def novice(home: Path, words: Words) -> Path:
    """A model that mostly copies: one demonstration in four was right."""
    return _shown(home, words, 0.25, 160)[0]


def _shown(home: Path, words: Words, right: float, steps: int) -> tuple[Path, Progress]:
    folder = home / f"shown_{right:g}"
    trainer = {"steps": steps, "learning_rate": 5e-3, "warmup_steps": 10, "schedule": "cosine"}
    settings = words_run(home / "blank", "sft", trainer=trainer, rollout={"groups_per_step": 128})
    return folder, demonstrate(settings, words, right, folder)
