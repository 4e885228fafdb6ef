"""Machines that others prepare, a development container and CI, run the commands of README."""

import json
import os
import re

import yaml

from helpers.settings import PROJECT


def command(name: str) -> str:
    """A command of README, as ``.ci/run`` finds it."""
    block = rf"<!-- command: {name} -->\n```bash\n(.+?)\n```"
    return re.search(block, (PROJECT / "README.md").read_text(), re.S)[1]


def test_the_container_begins_with_the_first_command():
    """A reader who opens it finds everything set up and the whole way run once."""
    container = json.loads((PROJECT / ".devcontainer" / "devcontainer.json").read_text())
    assert container["postCreateCommand"] == command("rehearse")
    assert container["image"].endswith("python:3.11")


def test_ci_runs_what_everybody_runs():
    """One script, which exists and can be started, and it takes its commands from README."""
    text = (PROJECT / ".github" / "workflows" / "ci.yml").read_text()
    [job] = yaml.safe_load(text)["jobs"].values()
    assert [step["run"] for step in job["steps"] if "run" in step] == [".ci/run"]
    script = PROJECT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    named = re.findall(r"\$\(readme (\w+)\)", script.read_text())
    assert set(named) == {"rehearse", "test"} and all(map(command, named))
