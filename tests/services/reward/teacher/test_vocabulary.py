"""A server of another vocabulary is refused before it is asked about tokens; one that cannot tell is told of."""

from pathlib import Path
from typing import Any

import httpx
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from services.reward.remote.client import ServiceClient
from services.reward.teacher.vocabulary import PROBE, check_vocabulary
from shared.errors import RunRejected
from tests.services.reward.teacher.teacher_server import TeacherServer


def tokenizer(folder: Path, first: int = 0) -> Tokenizer:
    """One token for each byte; they are numbered from `first` on."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = Tokenizer(models.BPE({symbol: (n + first) % 256 for n, symbol in enumerate(alphabet)}, merges=[]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    folder.mkdir(exist_ok=True)
    made.save(str(folder / "tokenizer.json"))
    return made


async def checked(tokens: Any, model: Path) -> list[tuple[str, dict[str, Any]]]:
    """The events that the check makes."""
    events: list[tuple[str, dict[str, Any]]] = []

    async def tell(event: str, detail: dict[str, Any]) -> None:
        events.append((event, detail))

    server = TeacherServer()
    server.tokens = tokens
    async with httpx.AsyncClient(transport=httpx.MockTransport(server.handle)) as http:
        await check_vocabulary(ServiceClient(http, httpx.URL("http://teacher"), 5), model, tell)
    return events


async def test_the_same_vocabulary_passes_with_and_without_what_tokenizers_put_before_a_text(tmp_path: Path) -> None:
    ids = tokenizer(tmp_path / "policy").encode(PROBE).ids
    for told in (ids, [1, *ids], [220, *ids[1:]]):
        assert await checked(told, tmp_path / "policy") == []


async def test_another_vocabulary_is_refused_with_what_to_serve_instead(tmp_path: Path) -> None:
    tokenizer(tmp_path / "policy")
    other = tokenizer(tmp_path / "teacher", first=1).encode(PROBE).ids
    for told in (other, other[:20], []):
        with pytest.raises(RunRejected, match=r"the teacher at http://teacher has another vocabulary .* serve a model"):
            await checked(told, tmp_path / "policy")


@pytest.mark.parametrize("tokens", [None, "text", [None]])
async def test_a_server_that_does_not_tell_is_an_event(tmp_path: Path, tokens: Any) -> None:
    tokenizer(tmp_path / "policy")
    ((event, detail),) = await checked(tokens, tmp_path / "policy")
    assert (event, detail["url"]) == ("teacher_vocabulary_unknown", "http://teacher")


async def test_a_model_whose_folder_is_not_here_is_an_event(tmp_path: Path) -> None:
    ((event, detail),) = await checked([1, 2, 3], tmp_path / "elsewhere")
    assert event == "teacher_vocabulary_unknown"
    assert "elsewhere/tokenizer.json" in detail["error"]
