"""Method calls -> requests to the gateway's REST API, with answers as typed objects and errors as sentences."""

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx

from shared.check_name import HOW_TO_NAME
from shared.errors import SluiceError
from shared.event_lines import event_lines
from shared.ledger_answers import DeadEntry, DeadLetterList, Discarded, LedgerAnswer, Lineage, Redriven
from shared.weights_answers import RollbackAnswer, VersionDetails, VersionList
from sluice.answers import Dataset, Run, Sample, Step, StreamEvent

CHUNK_BYTES = 256 * 1024
UPLOAD_DEADLINE_S = 600.0
"""Longest wait for one piece of an upload to go through, and for the verdict on it."""


class GatewayUnreachable(SluiceError):
    """Nothing answers at the gateway's address."""


class GatewayError(SluiceError):
    """The gateway refused a request; `status` is its HTTP status, `details` what it lists, such as lines of a file."""

    def __init__(self, message: str, status: int, details: list[Any]) -> None:
        super().__init__(message)
        self.status, self.details = status, details


class Client:
    """The REST API of one gateway. Not for several threads at once."""

    def __init__(self, url: str, api_key: str, timeout_s: float = 30.0) -> None:
        self.url = url.rstrip("/")
        headers = {"authorization": f"Bearer {api_key}"}
        self._http = httpx.Client(base_url=self.url, headers=headers, timeout=timeout_s, trust_env=False)

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._http.close()

    def status(self) -> dict[str, Any]:
        """The active run, services, router and Redis."""
        return self._get("/v1/status")

    def datasets(self) -> list[Dataset]:
        return [Dataset.model_validate(one) for one in self._get("/v1/datasets")["datasets"]]

    def dataset(self, name: str) -> Dataset:
        return Dataset.model_validate(self._get(f"/v1/datasets/{_quoted(name)}"))

    def rows(self, name: str, offset: int = 0, limit: int = 20) -> list[dict[str, Any]]:
        """Rows of a dataset: row, prompt, label, metadata, and chosen and rejected of a preference row."""
        return self._get(f"/v1/datasets/{_quoted(name)}/rows", offset=offset, limit=limit)["rows"]

    def push_dataset(
        self, name: str, file: Path, progress: Callable[[int], None] = lambda count: None, **parameters: str
    ) -> Dataset:
        """Upload a file in pieces; `progress` is told the bytes of each.

        Args:
            parameters: format ("jsonl" or "parquet"; by the file's name if not given), prompt_key, label_key,
                metadata_key, chosen_key, rejected_key; replace="true" takes the place of a dataset of that name, once
                the upload is complete.

        Raises:
            GatewayError: 409 if the name is taken, 422 with the malformed lines; then nothing is stored.
        """
        parameters.setdefault("format", "parquet" if file.suffix == ".parquet" else "jsonl")
        pieces = _pieces(file, progress)
        path, deadline = f"/v1/datasets/{_quoted(name)}", UPLOAD_DEADLINE_S
        return Dataset.model_validate(self._document("POST", path, params=parameters, content=pieces, timeout=deadline))

    def delete_dataset(self, name: str) -> None:
        self._ask("DELETE", f"/v1/datasets/{_quoted(name)}")

    def start_run(self, settings: dict[str, Any]) -> Run:
        """Create a run from a tree of settings, as a run file holds them."""
        return Run.model_validate(self._document("POST", "/v1/runs", json=settings))

    def branch_run(self, run: str, step: int, name: str = "", settings: dict[str, Any] | None = None) -> Run:
        """Create a run that goes on from a step of `run`; `settings` are what differs, as a tree."""
        body = {"step": step, "name": name, "settings": settings or {}}
        return Run.model_validate(self._document("POST", f"/v1/runs/{_quoted(run)}/branch", json=body))

    def runs(self) -> list[Run]:
        return [Run.model_validate(one) for one in self._get("/v1/runs")["runs"]]

    def run(self, run: str) -> Run:
        return Run.model_validate(self._get(f"/v1/runs/{_quoted(run)}"))

    def stop_run(self, run: str) -> Run:
        """Ask a run to stop after its step in hand; it saves a checkpoint first."""
        return Run.model_validate(self._document("POST", f"/v1/runs/{_quoted(run)}/stop"))

    def steps(self, run: str, after: int = 0, limit: int = 1000) -> list[Step]:
        """Committed steps with a number above `after`."""
        found = self._get(f"/v1/runs/{_quoted(run)}/steps", after=after, limit=limit)["steps"]
        return [Step.model_validate(one) for one in found]

    def samples(
        self, run: str, limit: int = 20, group_id: int | None = None, evaluations: bool | None = None
    ) -> list[Sample]:
        """Scored attempts that are still in Redis, newest groups first; `evaluations` wants only those, or none."""
        choice = {"group_id": group_id, "evaluations": evaluations}
        wanted = {"limit": limit, **{name: value for name, value in choice.items() if value is not None}}
        return [
            Sample.model_validate(one) for one in self._get(f"/v1/runs/{_quoted(run)}/samples", **wanted)["samples"]
        ]

    def delete_run(self, run: str, files: bool = False) -> None:
        """Delete a run that has ended, and with `files` its checkpoints, export and archive."""
        self._ask("DELETE", f"/v1/runs/{_quoted(run)}", params={"files": files})

    def ledger(self, run: str, verify: bool = False) -> LedgerAnswer:
        """What became of every group and token; `verify` proves it."""
        return LedgerAnswer.model_validate(self._get(f"/v1/runs/{_quoted(run)}/ledger", verify=verify))

    def lineage(self, run: str, group_id: int) -> Lineage:
        """One group, from its prompt to the weights that it trained."""
        return Lineage.model_validate(self._get(f"/v1/runs/{_quoted(run)}/lineage/{group_id}"))

    def weights(self, run: str, limit: int = 50, before: int | None = None) -> VersionList:
        """The newest weight versions, or those before one of them."""
        wanted = {"limit": limit, **({} if before is None else {"before": before})}
        return VersionList.model_validate(self._get(f"/v1/runs/{_quoted(run)}/weights", **wanted))

    def weight_version(self, run: str, version: int) -> VersionDetails:
        """One version: where it came from, and when and how each engine took it."""
        return VersionDetails.model_validate(self._get(f"/v1/runs/{_quoted(run)}/weights/{version}"))

    def roll_back(self, run: str, version: int) -> RollbackAnswer:
        """Ask a live run to go back to an older version; `weights(run).rollback` says what became of it."""
        path = f"/v1/runs/{_quoted(run)}/weights/{version}/rollback"
        return RollbackAnswer.model_validate(self._ask("POST", path).json())

    def dead_letters(self, run: str, limit: int = 100) -> DeadLetterList:
        """Entries that were given up, newest first."""
        return DeadLetterList.model_validate(self._get(f"/v1/runs/{_quoted(run)}/dead", limit=limit))

    def dead_letter(self, run: str, letter: str) -> DeadEntry:
        return DeadEntry.model_validate(self._get(f"/v1/runs/{_quoted(run)}/dead/{_quoted(letter)}"))

    def redrive(self, run: str, groups: Sequence[int] = (), everything: bool = False) -> Redriven:
        """Send dead groups again."""
        wanted = {"all": True} if everything else {"groups": list(groups)}
        return Redriven.model_validate(self._document("POST", f"/v1/runs/{_quoted(run)}/dead/redrive", json=wanted))

    def discard(
        self, run: str, groups: Sequence[int] = (), letters: Sequence[str] = (), everything: bool = False
    ) -> Discarded:
        """Delete dead letters, with all letters of their groups."""
        wanted = {"all": True} if everything else {"groups": list(groups), "ids": list(letters)}
        return Discarded.model_validate(self._document("DELETE", f"/v1/runs/{_quoted(run)}/dead", json=wanted))

    def events(
        self, run: str, after_id: str = "", timeout_s: float = 60.0, follow: bool = True
    ) -> Iterator[StreamEvent]:
        """What happens to a run, as it happens; ends after the run ended.

        Args:
            after_id: resumes behind that event.
            follow: False ends with what has happened so far.
        """
        headers, query = {"last-event-id": after_id} if after_id else {}, {} if follow else {"follow": "false"}
        try:
            with self._http.stream(
                "GET", f"/v1/runs/{_quoted(run)}/events", params=query, headers=headers, timeout=timeout_s
            ) as answer:
                if not answer.is_success:
                    answer.read()
                    raise _refusal(answer)
                yield from _parse_events(event_lines(answer.iter_bytes()))
        except httpx.TransportError as error:
            raise self._unreachable(error) from error

    def generate(self, request: dict[str, Any], timeout_s: float = 600.0) -> dict[str, Any]:
        """SGLang's /generate, answered by the engines behind the gateway."""
        return self._document("POST", "/generate", json=request, timeout=timeout_s)

    def _get(self, path: str, **params: Any) -> dict[str, Any]:
        return self._document("GET", path, params=params)

    def _document(self, method: str, path: str, **arguments: Any) -> dict[str, Any]:
        answer = self._ask(method, path, **arguments)
        try:
            return answer.json()
        except ValueError as error:
            raise SluiceError(f"what answers at {self.url} is no gateway; correct gateway.url") from error

    def _ask(self, method: str, path: str, **arguments: Any) -> httpx.Response:
        try:
            answer = self._http.request(method, path, **arguments)
        except httpx.TransportError as error:
            raise self._unreachable(error) from error
        if not answer.is_success:
            raise _refusal(answer)
        return answer

    def _unreachable(self, error: httpx.TransportError) -> GatewayUnreachable:
        if isinstance(error, httpx.ConnectError):
            return GatewayUnreachable(f"no gateway answers at {self.url}; run `sluice up` first")
        return GatewayUnreachable(f"the gateway at {self.url} broke off ({error or type(error).__name__}); try again")


def _pieces(file: Path, progress: Callable[[int], None]) -> Iterator[bytes]:
    with file.open("rb") as source:
        while piece := source.read(CHUNK_BYTES):
            yield piece
            progress(len(piece))


def _parse_events(lines: Iterator[str]) -> Iterator[StreamEvent]:
    fields: dict[str, str] = {}
    for line in lines:
        name, _, value = line.partition(":")
        if line and name:
            fields[name] = fields.get(name, "") + value.removeprefix(" ")
        elif not line and "data" in fields:
            data = json.loads(fields["data"])
            yield StreamEvent(event=fields.get("event", "message"), id=fields.get("id", ""), data=data)
            fields = {}


def _refusal(answer: httpx.Response) -> GatewayError:
    try:
        error: dict[str, Any] = answer.json()["error"]
        message, details = str(error["message"]), list(error.get("details") or [])
    except (ValueError, KeyError, TypeError):
        said = f"{answer.status_code} {answer.reason_phrase}"
        message, details = f"{answer.url} answered {said}, and not as a gateway does; correct gateway.url", []
    if answer.status_code == httpx.codes.UNAUTHORIZED.value:
        message = f"{message}; the key is in the file api_key of the deployment's home, or set SLUICE_GATEWAY__API_KEY"
    return GatewayError(message, answer.status_code, details)


def _quoted(name: str) -> str:
    """A name as one part of a path; SluiceError for one that would lead to another place."""
    if name in ("", ".", "..") or "/" in name:
        raise SluiceError(f"{name!r} is no name; {HOW_TO_NAME}")
    return quote(name, safe="")
