"""A seed -> arithmetic of reasoning-gym as chats with answers: `python -m examples.smollm2.rows FOLDER [--seed N]`."""

import argparse
import json
from pathlib import Path

from reasoning_gym import create_dataset

HELD_OUT, PROMPTS = 512, 16_000
SHOWN = (("7 + 5 =", "12"), ("14 - 23 =", "-9"), ("31 + 8 - 4 =", "35"))
"""Turns before the question: a model of this size answers with one number only once it has seen how."""


def write_rows(folder: Path, seed: int) -> None:
    """train.jsonl and held_out.jsonl: sums and differences of two or three numbers of one or two digits, each once."""
    source = create_dataset(
        "chain_sum",
        seed=seed,
        size=3 * (HELD_OUT + PROMPTS),
        min_terms=2,
        max_terms=3,
        min_digits=1,
        max_digits=2,
    )
    answers = {item["metadata"]["expression"] + " =": item["answer"] for item in source}
    rows = [{"prompt": _chat(question), "label": answer} for question, answer in answers.items()]
    assert len(rows) >= HELD_OUT + PROMPTS, f"only {len(rows)} different questions were made"
    folder.mkdir(parents=True, exist_ok=True)
    for name, part in (("held_out", rows[:HELD_OUT]), ("train", rows[HELD_OUT : HELD_OUT + PROMPTS])):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part), "utf-8")


def _chat(question: str) -> list[dict[str, str]]:
    turns = [turn for asked, answer in SHOWN for turn in (("user", asked), ("assistant", answer))]
    return [{"role": role, "content": content} for role, content in (*turns, ("user", question))]


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(
        prog="python -m examples.smollm2.rows", description="Arithmetic of reasoning-gym as rows."
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    write_rows(arguments.folder, arguments.seed)


if __name__ == "__main__":
    main()
