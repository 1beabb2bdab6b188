"""`sluice branch` against a real gateway."""

import json
from pathlib import Path

from tests.sluice.conftest import Sluice
from tests.sluice.test_client import rows_file

RUN_FILE = """
name = "{name}"
model = {{ path = "some/model" }}
data = {{ datasets = [{{ name = "branch-rows" }}] }}
trainer = {{ steps = 2 }}
"""


def test_a_branch_is_queued_with_its_parents_settings_and_the_changes(connected: Sluice, tmp_path: Path) -> None:
    connected("dataset", "push", str(rows_file(tmp_path)), "--name", "branch-rows")
    file = tmp_path / "run.toml"
    file.write_text(RUN_FILE.format(name="branch-parent"))
    assert connected("run", "start", str(file), "--detach").code == 0
    arguments = ("branch", "branch-parent", "--from", "0", "--set", "trainer.steps=7", "--detach")
    outcome = connected(*arguments, "--json")
    run = json.loads(outcome.out)
    assert (run["run"], run["settings"]["branch"]) == ("branch-parent-0", {"run": "branch-parent", "step": 0})
    assert (run["settings"]["trainer"]["steps"], run["settings"]["data"]["datasets"][0]["name"]) == (7, "branch-rows")
    named = connected(*arguments, "--name", "other-name")
    assert "other-name goes on from step 0 of branch-parent" in named.err
    wrong = connected("branch", "branch-parent", "--from", "1")
    assert wrong.code == 1
    assert "has done 0 steps" in wrong.err
    misspelt = connected(*arguments, "--set", "trainer.learning_rat=1")
    assert "did you mean trainer.learning_rate" in misspelt.err
    for run_name in ("branch-parent", "branch-parent-0", "other-name"):
        assert connected("run", "stop", run_name).code == 0
