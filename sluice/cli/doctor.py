"""`sluice doctor`: what this machine has and lacks, each with what to do about it."""

import typer
from rich.text import Text

from sluice.cli.doctor_checks import Check, check_machine
from sluice.cli.options import AsJson, Config, SetDeployment, deployment_of
from sluice.cli.output import show, table

COLOURS = {"ok": "green", "warn": "yellow", "fail": "red"}


def doctor(config: Config = None, assignments: SetDeployment = None, as_json: AsJson = False) -> None:
    """Check this machine. Exit code 1 if something is missing that Sluice cannot do without."""
    checks = check_machine(deployment_of(config, assignments))
    rows = [(Text(check.level, COLOURS[check.level]), check.name, _sentence(check)) for check in checks]
    data = [{"name": c.name, "level": c.level, "found": c.found, "advice": c.advice} for c in checks]
    show(as_json, {"checks": data}, table(("", "check", "found"), rows))
    if any(check.level == "fail" for check in checks):
        raise typer.Exit(1)


def _sentence(check: Check) -> str:
    return f"{check.found}; {check.advice}" if check.advice else check.found
