"""The name of a run or dataset -> the same name, or the sentence that says how one is written."""

import re
from typing import Annotated

from pydantic import AfterValidator

HOW_TO_NAME = "write 1 to 64 of a-z 0-9 _ . - beginning with a letter or digit"
_NAME = re.compile(r"[a-z0-9][a-z0-9_.-]{0,63}")


def is_name(text: str) -> bool:
    return _NAME.fullmatch(text) is not None


def _check_name(text: str) -> str:
    if not is_name(text):
        raise ValueError(HOW_TO_NAME)
    return text


Name = Annotated[str, AfterValidator(_check_name)]
