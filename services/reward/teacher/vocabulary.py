"""A served teacher and the folder of the policy -> whether both read a text as the same tokens."""

import asyncio
import json
from pathlib import Path
from typing import Any, cast

from tokenizers import Tokenizer

from services.reward.remote.client import ServiceClient
from services.reward.remote.failures import Rejected, Unavailable
from services.reward.tell import Tell
from shared.errors import RunRejected

PATH = "/tokenize"
PROBE = (
    "A sentence of common words, then 31415926 and 2.718; café, naïve, Straße.\n\n    return [x ** 2 for x in range(9)]"
    "\tżółć, 世界, 🙂"
)
MARGIN = 2
"""First tokens that are not compared: some tokenizers write a space before a text, some do not."""


async def check_vocabulary(client: ServiceClient, model: Path, tell: Tell) -> None:
    """Compare the tokens of a text; where one side cannot tell them, an event says that nothing was compared.

    Raises:
        RunRejected: the teacher has another vocabulary, so that its log-probabilities would be of other texts.
    """
    try:
        own = await asyncio.to_thread(_own_tokens, model / "tokenizer.json")
        told = _read(await client.post(json.dumps({"prompt": PROBE, "add_special_tokens": False}).encode(), PATH))
    except (_Untold, Rejected, Unavailable) as error:
        await tell("teacher_vocabulary_unknown", {"url": client.name, "error": str(error)})
        return
    count = max(len(own), len(told)) - MARGIN
    if own[-count:] != told[-count:]:
        raise RunRejected(
            f"the teacher at {client.name} has another vocabulary than model.path {model}: it reads a text as"
            f" {len(told)} tokens that end with {told[-3:]}, the policy as {len(own)} that end with {own[-3:]}; serve a"
            " model of the policy's family"
        )


class _Untold(Exception):
    """One side does not say how it reads a text."""


def _own_tokens(file: Path) -> list[int]:
    found = file.expanduser()
    if not found.is_file():
        raise _Untold(f"the reward service finds no {file}")
    return Tokenizer.from_file(str(found)).encode(PROBE, add_special_tokens=False).ids


def _read(body: bytes) -> list[int]:
    try:
        answer: Any = json.loads(body)
        return [int(token_id) for token_id in cast(list[Any], answer["tokens"])]
    except (ValueError, KeyError, TypeError) as error:
        raise _Untold(f"its answer to {PATH} has no tokens ({type(error).__name__}: {error})") from error
