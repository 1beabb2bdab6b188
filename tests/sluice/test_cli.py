"""The program `sluice` against a real gateway: what it prints where, and its exit codes."""

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks.free_ports import free_port
from deploy.process import birth
from deploy.supervisor_state import SupervisorState, write_state
from sluice.answers import Evaluation, Run, Step
from sluice.cli import main, watch
from tests.sluice.conftest import Sluice
from tests.sluice.test_client import rows_file

RUN_FILE = """
name = "{name}"
[model]
path = "{model}"
[data]
datasets = [{{ name = "{dataset}" }}]
[trainer]
steps = 2
"""


@pytest.fixture
def run_file(connected: Sluice, tmp_path: Path) -> Callable[[str], Path]:
    """Push a dataset, and write run files for it."""
    dataset = tmp_path.name.lower()
    assert connected("dataset", "push", str(rows_file(tmp_path)), "--name", dataset).code == 0
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text("{}")

    def write(name: str) -> Path:
        file = tmp_path / f"{name}.toml"
        file.write_text(RUN_FILE.format(name=name, model=model, dataset=dataset))
        return file

    return write


def test_json_output_is_one_document_and_nothing_else(connected: Sluice, tmp_path: Path) -> None:
    pushed = connected("dataset", "push", str(rows_file(tmp_path)), "--name", "cli-json", "--json")
    assert json.loads(pushed.out)["rows"] == 3
    assert pushed.err == ""
    listed = json.loads(connected("dataset", "list", "--json").out)["datasets"]
    assert "cli-json" in [dataset["name"] for dataset in listed]
    assert len(json.loads(connected("dataset", "show", "cli-json", "--limit", "2", "--json").out)["preview"]) == 2
    assert json.loads(connected("dataset", "delete", "cli-json", "--json").out) == {"deleted": "cli-json"}
    assert "checks" in json.loads(connected("doctor", "--json").out)
    assert "runs" in json.loads(connected("run", "list", "--json").out)


def test_a_wrong_file_is_answered_with_the_options_of_the_command(connected: Sluice, tmp_path: Path) -> None:
    file = tmp_path / "keys.jsonl"
    file.write_text('{"promt": "1+1="}\n{"promt": "2+2="}\n')
    told = connected("dataset", "push", str(file)).err
    assert told.count("name the key that holds the prompt with --prompt-key") == 3


def test_a_name_that_would_lead_elsewhere_is_refused(connected: Sluice, tmp_path: Path) -> None:
    for name in ("", "..", "a/b"):
        assert f"{name!r} is no name; write 1 to 64 of" in connected("dataset", "delete", name).err
        assert "is no name" in connected("run", "delete", name).err
        assert "is no name" in connected("dataset", "push", str(rows_file(tmp_path)), "--name", f"{name}/").err


def test_the_doctor_says_in_plain_words_how_each_thing_is(sluice: Sluice) -> None:
    shown = [line.split()[:2] for line in sluice("doctor").out.splitlines()]
    assert ["ok", "python"] in shown


def test_tables_show_datasets_and_rows(connected: Sluice, tmp_path: Path) -> None:
    connected("dataset", "push", str(rows_file(tmp_path)), "--name", "cli-table")
    assert "cli-table" in connected("dataset", "list").out
    assert "2+1=" in connected("dataset", "show", "cli-table").out


def test_tables_show_the_beginning_of_a_long_text_and_nothing_that_steers_a_terminal(
    connected: Sluice, tmp_path: Path
) -> None:
    file = tmp_path / "wild.jsonl"
    file.write_text(json.dumps({"prompt": "\x1b[2Ja\x00b\u2028c" + "x" * 5000}) + "\n")
    connected("dataset", "push", str(file), "--name", "cli-wild")
    shown = connected("dataset", "show", "cli-wild").out
    assert "\\x1b[2Ja\\x00b\\u2028cxxx" in shown
    assert "\x1b" not in shown
    assert shown.count("x" * 100) < 5


def test_a_dataset_of_pairs_shows_both_answers(connected: Sluice, tmp_path: Path) -> None:
    file = tmp_path / "pairs.jsonl"
    file.write_text('{"prompt": "2+1=", "good": "three", "bad": "four"}\n')
    keys = ("--chosen-key", "good", "--rejected-key", "bad")
    assert connected("dataset", "push", str(file), "--name", "cli-pairs", *keys).code == 0
    shown = connected("dataset", "show", "cli-pairs").out
    assert all(word in shown for word in ("2+1=", "chosen", "three", "rejected", "four"))


def test_a_malformed_row_is_told_by_line_with_exit_code_1(connected: Sluice, tmp_path: Path) -> None:
    file = tmp_path / "bad.jsonl"
    file.write_text('{"prompt": "a", "label": "b"}\n{"promt": "c"}\n')
    outcome = connected("dataset", "push", str(file))
    assert outcome.code == 1
    assert outcome.out == ""
    assert "line 2" in outcome.err
    assert "Traceback" not in outcome.err


def test_replacing_keeps_the_old_dataset_when_the_new_file_is_malformed(connected: Sluice, tmp_path: Path) -> None:
    good = rows_file(tmp_path)
    assert connected("dataset", "push", str(good), "--name", "cli-kept").code == 0
    taken = connected("dataset", "push", str(good), "--name", "cli-kept")
    assert taken.code == 1
    assert "--replace" in taken.err
    bad = tmp_path / "bad.jsonl"
    bad.write_text("no json\n")
    assert connected("dataset", "push", str(bad), "--name", "cli-kept", "--replace").code == 1
    assert json.loads(connected("dataset", "show", "cli-kept", "--json").out)["rows"] == 3
    assert connected("dataset", "push", str(rows_file(tmp_path, 5)), "--name", "cli-kept", "--replace").code == 0
    assert json.loads(connected("dataset", "show", "cli-kept", "--json").out)["rows"] == 5
    names = [one["name"] for one in json.loads(connected("dataset", "list", "--json").out)["datasets"]]
    assert [name for name in names if name.startswith("cli-kept")] == ["cli-kept"]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("dataset", "push", "absent.jsonl"), "absent.jsonl is not a file"),
        (("dataset", "show", "absent"), "absent"),
        (("run", "start", "absent.toml"), "absent.toml: cannot be read"),
        (("run", "show", "absent"), "absent"),
        (("up", "--set", "gateway.prot=1"), "did you mean gateway.port"),
        (("up", "--set", "gateway"), "write section.name=value"),
        (("up", "--config", "absent.toml"), "absent.toml: cannot be read"),
        (("logs",), "run `sluice up` first"),
    ],
)
def test_a_users_mistake_is_one_sentence_and_exit_code_1(
    connected: Sluice, arguments: tuple[str, ...], sentence: str
) -> None:
    outcome = connected(*arguments)
    assert outcome.code == 1
    assert outcome.out == ""
    assert outcome.err.startswith("error: ")
    assert sentence in outcome.err
    assert len(outcome.err.strip().splitlines()) == 1


def test_before_the_first_start_the_error_says_how_to_start(sluice: Sluice) -> None:
    outcome = sluice("run", "list")
    assert outcome.code == 1
    assert "run `sluice up` first" in outcome.err


def test_an_unknown_option_is_a_usage_error(sluice: Sluice) -> None:
    assert sluice("status", "--nonsense").code == 2


def test_a_misspelt_run_setting_is_told_before_anything_is_sent(
    connected: Sluice, run_file: Callable[[str], Path]
) -> None:
    outcome = connected("run", "start", str(run_file("cli-misspelt")), "--set", "trainer.stepz=3")
    assert outcome.code == 1
    assert "did you mean trainer.steps" in outcome.err
    assert connected("run", "show", "cli-misspelt").code == 1


def test_run_settings_come_from_file_then_environment_then_command_line(
    connected: Sluice, run_file: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLUICE_RUN__TRAINER__STEPS", "5")
    monkeypatch.setenv("SLUICE_RUN__SEED", "7")
    arguments = ("run", "start", str(run_file("cli-layers")), "--detach", "--json")
    run = json.loads(connected(*arguments, "--set", "seed=9").out)
    assert run["settings"]["trainer"]["steps"] == 5
    assert run["settings"]["seed"] == 9
    assert connected("run", "stop", "cli-layers").code == 0


def test_watching_follows_a_run_to_its_end_and_says_where_its_model_is(
    connected: Sluice, run_file: Callable[[str], Path], tmp_path: Path
) -> None:
    connected("run", "start", str(run_file("cli-watched")), "--detach")
    assert connected("run", "stop", "cli-watched").code == 0
    outcome = connected("run", "watch", "cli-watched", "--json")
    assert outcome.code == 0
    assert [json.loads(line)["state"] for line in outcome.out.splitlines()][-1] == "stopped"
    assert "stopped at step 0 of 2" in connected("run", "watch", "cli-watched").err
    export = tmp_path / ".sluice" / "runs" / "cli-watched" / "export"
    assert f"sluice chat {export}" not in connected("run", "watch", "cli-watched").err
    export.mkdir(parents=True)
    assert f"sluice chat {export}" in connected("run", "watch", "cli-watched").err
    assert "stopped" in connected("run", "list").out
    assert "state: stopped" in connected("run", "events", "cli-watched").out
    assert (
        json.loads(connected("run", "events", "cli-watched", "--json").out.splitlines()[-1])["data"]["state"]
        == "stopped"
    )
    shown = connected("run", "show", "cli-watched").out
    assert "stopped" in shown
    assert "mean reward" not in shown  # it evaluates nothing
    assert "no samples yet" in connected("run", "samples", "cli-watched").out


def test_a_port_in_use_stops_a_start_before_anything_runs(sluice: Sluice, connected: Sluice, tmp_path: Path) -> None:
    port = int(os.environ["SLUICE_GATEWAY__URL"].rpartition(":")[2])
    for arguments in (("up", "--detach"), ("up",)):
        outcome = sluice(*arguments, "--set", f"gateway.port={port}", "--set", f"redis.port={free_port()}")
        assert outcome.code == 1
        assert f"port {port} is in use by process" in outcome.err
    assert not (tmp_path / ".sluice").exists()


def test_down_where_nothing_runs_says_so(sluice: Sluice) -> None:
    outcome = sluice("down", "--json")
    assert outcome.code == 0
    assert json.loads(outcome.out)["outcome"] == "not running"


def ended_supervisor(home: Path) -> None:
    home.mkdir()
    (home / "api_key").write_text("key")
    write_state(home, SupervisorState(os.getpid(), "of another process", 1.0, "http://127.0.0.1:9", {}))


@pytest.mark.parametrize("arguments", [("run", "list"), ("dataset", "list"), ("status",)])
def test_after_down_commands_say_that_it_does_not_run(
    sluice: Sluice, tmp_path: Path, arguments: tuple[str, ...]
) -> None:
    ended_supervisor(tmp_path / ".sluice")
    outcome = sluice(*arguments)
    assert outcome.code == 1
    assert "Sluice is not running here" in outcome.err
    assert "start it with `sluice up`" in outcome.err


def test_a_gateway_that_is_named_is_asked_though_none_runs_here(connected: Sluice, tmp_path: Path) -> None:
    ended_supervisor(tmp_path / ".sluice")
    assert connected("run", "list").code == 0


def test_status_of_a_running_supervisor_shows_its_services_though_the_gateway_is_away(
    sluice: Sluice, tmp_path: Path
) -> None:
    home = tmp_path / ".sluice"
    home.mkdir()
    (home / "api_key").write_text("key")
    entry = {"phase": "restarting", "pid": None, "restarts": 3, "since": 1.0, "reason": "ended with exit code 3"}
    url = f"http://127.0.0.1:{free_port()}"
    state = SupervisorState(os.getpid(), birth(os.getpid()), 1.0, url, {}, services={"gateway": entry})
    write_state(home, state)
    outcome = sluice("status")
    assert outcome.code == 1
    assert "ended with exit code 3" in outcome.out
    assert f"no gateway answers at {url}" in outcome.out


def test_logs_show_the_end_of_each_file_with_its_service_in_order_of_time(sluice: Sluice, tmp_path: Path) -> None:
    folder = tmp_path / ".sluice" / "logs"
    folder.mkdir(parents=True)
    (folder / "trainer.log").write_text("".join(f"00:00:{n} INFO trainer step_done step={n}\n" for n in range(10, 50)))
    (folder / "engine-0.log").write_text("00:00:47 INFO engine run_joined\n")
    (folder / "sglang-0.log").write_text("[2026-01-01 00:00:00] ready\n")
    assert sluice("logs", "-n", "3").out.splitlines() == [
        "sglang-0 | [2026-01-01 00:00:00] ready",
        "engine-0 | 00:00:47 INFO engine run_joined",
        "trainer  | 00:00:47 INFO trainer step_done step=47",
        "trainer  | 00:00:48 INFO trainer step_done step=48",
        "trainer  | 00:00:49 INFO trainer step_done step=49",
    ]
    both = [json.loads(line)["service"] for line in sluice("logs", "engine-0", "--json").out.splitlines()]
    assert both == [json.loads(line)["service"] for line in sluice("logs", "engine", "--json").out.splitlines()]
    assert both == ["sglang-0", "engine-0"]
    assert sluice("logs", "sglang-0").out == "sglang-0 | [2026-01-01 00:00:00] ready\n"
    wrong = sluice("logs", "trainr")
    assert wrong.code == 1
    assert "there are engine-0, sglang-0, trainer" in wrong.err


def test_the_live_table_and_the_lines_show_what_a_person_follows(capsys: pytest.CaptureFixture[str]) -> None:
    metrics = {"reward_mean": 0.5, "loss": 0.1, "tokens_per_second": 812.0, "staleness_max": 1.0, "seconds_total": 2.0}
    evaluation = Evaluation(
        version=3,
        dataset="held",
        groups=4,
        done=4,
        attempts=4,
        dropped=0,
        off_version=0,
        reward_mean=0.75,
        complete=True,
    )
    fields = Run.model_fields.keys() - {"run", "state", "step", "steps"}
    run = Run.model_construct(run="r", state="running", step=3, steps=10, **dict.fromkeys(fields))
    watch.Lines().update(run, [Step(step=3, weight_version=3, metrics=metrics)], [evaluation])
    out = capsys.readouterr().out.splitlines()
    assert out[0] == "evaluation of version 3 on held: 0.7500"
    assert out[1] == "step 3/10  reward 0.5  loss 0.1  tokens/s 812  version 3  staleness 1  seconds 2"


def test_the_version_is_that_of_the_package(sluice: Sluice) -> None:
    assert sluice("--version").code == 0


def test_a_reader_that_has_seen_enough_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> None:
        raise BrokenPipeError

    monkeypatch.setattr(main, "app", broken)
    monkeypatch.setattr(sys, "stderr", open(os.devnull, "w"))  # noqa: SIM115 closed by what is tested
    with pytest.raises(SystemExit) as end:
        main.run()
    assert end.value.code == 0
