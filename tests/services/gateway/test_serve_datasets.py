"""/v1/datasets over HTTP: uploads, errors in one shape, deletion only when no run needs the rows."""

from pathlib import Path

import httpx
import pyarrow as pa
import pyarrow.parquet as pq
from redis.asyncio import Redis

from services.gateway.dataset_store import DatasetStore
from services.gateway.stop_run import stop_run
from shared.runs import Runs
from tests.services.gateway.gateway_cases import add, body, lines, pairs, run_settings, sums


async def test_a_streamed_upload_is_stored_listed_shown_previewed_and_deleted(client: httpx.AsyncClient) -> None:
    answer = await client.post("/v1/datasets/sums", content=body(sums(300), chunk=1000))
    assert answer.status_code == 201
    dataset = answer.json()
    assert (dataset["name"], dataset["rows"], dataset["bytes"]) == ("sums", 300, len(sums(300)))
    assert (await client.get("/v1/datasets")).json() == {"datasets": [dataset]}
    assert (await client.get("/v1/datasets/sums")).json() == dataset
    rows = (await client.get("/v1/datasets/sums/rows?offset=299&limit=5")).json()
    assert rows == {"rows": [{"row": 299, "prompt": "299+1=", "label": "300", "metadata": {}}]}
    assert (await client.delete("/v1/datasets/sums")).status_code == 204
    assert (await client.get("/v1/datasets")).json() == {"datasets": []}


async def test_key_names_and_format_are_taken_from_the_query(client: httpx.AsyncClient, tmp_path: Path) -> None:
    pq.write_table(pa.Table.from_pylist([{"question": "q", "answer": {"value": 1.5}}]), tmp_path / "p")
    query = {"format": "parquet", "prompt_key": "question", "label_key": "answer"}
    answer = await client.post("/v1/datasets/qa", params=query, content=(tmp_path / "p").read_bytes())
    assert (answer.status_code, answer.json()["format"]) == (201, "parquet")
    rows = (await client.get("/v1/datasets/qa/rows")).json()["rows"]
    assert rows == [{"row": 0, "prompt": "q", "label": {"value": 1.5}, "metadata": {}}]


async def test_preference_rows_are_stored_previewed_and_told_apart_from_others(client: httpx.AsyncClient) -> None:
    answer = (await client.post("/v1/datasets/pairs", content=pairs(3))).json()
    assert (answer["rows"], answer["pairs"], answer["demonstrations"], answer["labels"]) == (3, True, False, False)
    rows = (await client.get("/v1/datasets/pairs/rows?offset=2")).json()["rows"]
    assert rows == [{"row": 2, "prompt": "2+1=", "label": None, "metadata": {}, "chosen": "3", "rejected": "2"}]
    mixed = (await client.post("/v1/datasets/mixed", content=pairs(1) + sums(1))).json()
    assert (mixed["pairs"], mixed["labels"]) == (False, False)


async def test_pairs_of_conversations_come_from_parquet_with_keys_of_their_own(
    client: httpx.AsyncClient, tmp_path: Path
) -> None:
    ask, good, bad = (
        {"role": role, "content": text} for role, text in (("user", "a"), ("assistant", "b"), ("assistant", "c"))
    )
    pq.write_table(pa.Table.from_pylist([{"better": [ask, good], "worse": [ask, bad], "x": 1}]), tmp_path / "p")
    query = {"format": "parquet", "chosen_key": "better", "rejected_key": "worse"}
    answer = await client.post("/v1/datasets/chats", params=query, content=(tmp_path / "p").read_bytes())
    assert (answer.status_code, answer.json()["pairs"]) == (201, True)
    (row,) = (await client.get("/v1/datasets/chats/rows")).json()["rows"]
    assert (row["prompt"], row["chosen"], row["rejected"]) == ([ask], [good], [bad])


async def test_wrong_pairs_answer_422_with_a_sentence_a_line(client: httpx.AsyncClient) -> None:
    wrong = lines({"prompt": "a", "chosen": "b"}, {"prompt": "a", "chosen": "b", "rejected": "b"})
    answer = await client.post("/v1/datasets/pairs", content=pairs(1) + wrong)
    assert answer.status_code == 422
    details = answer.json()["error"]["details"]
    assert [(one["line"], one["error"].partition(";")[0]) for one in details] == [
        (2, "'chosen' is here and 'rejected' is not"),
        (3, "'chosen' and 'rejected' are the same"),
    ]


async def test_a_conversation_that_ends_with_the_assistant_is_a_demonstration(client: httpx.AsyncClient) -> None:
    turns = [{"role": "user", "content": "1+1="}, {"role": "assistant", "content": "2"}]
    answer = (await client.post("/v1/datasets/chats", content=lines({"prompt": turns}) + sums(1))).json()
    assert (answer["demonstrations"], answer["text_labels"]) == (True, False)
    silent = (await client.post("/v1/datasets/silent", content=lines({"prompt": turns[:1]}))).json()
    assert not silent["demonstrations"]


async def test_wrong_rows_answer_422_with_their_lines(client: httpx.AsyncClient) -> None:
    answer = await client.post("/v1/datasets/sums", content=sums(1) + b'{"label": 1}\n')
    assert answer.status_code == 422
    error = answer.json()["error"]
    assert error["message"].startswith("nothing was stored: line 2: 'prompt' is missing")
    assert [detail["line"] for detail in error["details"]] == [2]
    assert (await client.get("/v1/datasets/sums")).status_code == 404


async def test_a_dataset_is_replaced_only_while_no_run_reads_it(
    client: httpx.AsyncClient, redis: Redis, store: DatasetStore
) -> None:
    await add(store, "sums", sums(3))
    taken = await client.post("/v1/datasets/sums", content=sums(5))
    assert (taken.status_code, "?replace=true" in taken.json()["error"]["message"]) == (409, True)
    replaced = await client.post("/v1/datasets/sums?replace=true", content=sums(5))
    assert (replaced.status_code, replaced.json()["rows"]) == (201, 5)
    await Runs(redis).create(run_settings())
    used = await client.post("/v1/datasets/sums?replace=true", content=sums(7))
    assert (used.status_code, "run r1" in used.json()["error"]["message"]) == (409, True)
    assert store.get("sums").rows == 5


async def test_a_form_upload_is_told_how_to_send_the_file(client: httpx.AsyncClient) -> None:
    answer = await client.post("/v1/datasets/sums", files={"file": sums(1)})
    assert (answer.status_code, "-T" in answer.json()["error"]["message"]) == (415, True)


async def test_wrong_parameters_answer_in_the_same_shape(client: httpx.AsyncClient) -> None:
    answer = await client.post("/v1/datasets/sums?format=csv", content=b"a,b")
    assert answer.status_code == 422
    assert answer.json()["error"]["message"] == "format is 'csv'; input should be 'jsonl' or 'parquet'"
    assert (await client.get("/v1/datasets/sums/rows?limit=0")).status_code == 422


async def test_a_dataset_is_kept_while_a_run_that_has_not_ended_uses_it(
    client: httpx.AsyncClient, redis: Redis, store: DatasetStore
) -> None:
    for name in ("sums", "held-out"):
        await add(store, name, sums(3))
    record = await Runs(redis).create(run_settings(eval={"datasets": ["held-out"]}))
    for name in ("sums", "held-out"):
        answer = await client.delete(f"/v1/datasets/{name}")
        assert (answer.status_code, "run r1" in answer.json()["error"]["message"]) == (409, True)
    await stop_run(redis, record)
    assert (await client.delete("/v1/datasets/sums")).status_code == 204
    gone = await client.delete("/v1/datasets/held_out")
    assert (gone.status_code, gone.json()["error"]["message"]) == (
        404,
        "there is no dataset 'held_out'; did you mean held-out?",
    )
