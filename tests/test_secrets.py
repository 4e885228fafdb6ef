"""Planted keys appear in no output, log, traceback, saved run, command line or notebook."""

import json
import textwrap

import nbformat
import psutil
import pytest
from nbclient import NotebookClient
from support.waiting import ours

PLANTED = {
    "VAST_API_KEY": "planted-vast-0123456789abcdef",
    "RUNPOD_API_KEY": "planted-runpod-0123456789abcdef",
    "HF_TOKEN": "hf_planted0123456789abcdef",
    "SSH_PASSPHRASE": "planted passphrase of mine",
}
MODEL_KEY = "planted-model-key-0123456789abcdef"

CELLS = [
    """
    from helpers import load, settings
    from helpers.rent import guard
    from helpers import rent
    from helpers.serve import spec as serving
    from helpers.rent import ssh
    config = settings.read()
    config
    """,
    """
    print(config, repr(config.vast_api_key), config.model_dump())
    provider = rent.connect(config)
    token = config.hf_token.get_secret_value()
    spec = serving.ServingSpec(env={"HF_TOKEN": token}, extra_args=())
    spec
    """,
    """
    instance = guard.rent(provider, spec, "secrets", config)
    print(instance, provider.logs(instance.id, 100))
    guard.status(provider.instances())
    """,
    """
    tunnel = ssh.tunnel(instance, config)
    print(tunnel, tunnel.command)
    endpoint = tunnel.endpoint(api_key=MODEL_KEY)
    run = await load.run(endpoint, load.Synthetic(input_tokens=8, output_tokens=4),
                         load.ClosedLoop(users=2), requests=4)
    print(endpoint, run)
    run.frame()
    """,
    """
    from helpers.endpoint import Endpoint
    dead = Endpoint(base_url="http://127.0.0.1:9/v1", model="m", api_key=MODEL_KEY)
    await load.run(dead, load.Synthetic(), load.ClosedLoop(users=1), requests=1)
    """,
    """
    from helpers.rent.vast import Vast
    Vast(api_key=config.vast_api_key.get_secret_value(), server_url=URL).balance_usd()
    """,
    """
    from helpers.rent.runpod import RunPod
    RunPod(api_key=config.runpod_api_key.get_secret_value(), server_url=URL).balance_usd()
    """,
    """
    rent.connect(config.model_copy(update={"provider": "vast"}))
    config.require("vast_api_key", "https://example.com"); 1 / 0
    """,
    "print(config.does_not_exist)",
]


@pytest.fixture
def planted(own_rehearsal, monkeypatch, tmp_path):
    """The planted keys in the environment, and a key pair protected by the planted phrase."""
    for name, value in PLANTED.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("SSH_KEY", str(tmp_path / "dot-ssh" / "id"))
    monkeypatch.setenv("RUNS_DIR", str(tmp_path / "runs"))
    return own_rehearsal


def test_planted_keys_are_found_nowhere(planted, tmp_path):
    """A notebook does everything with keys that can be done, also wrongly; then all is searched."""
    from helpers import rehearsal

    url = rehearsal.ensure(planted).url
    start = f"MODEL_KEY, URL = {MODEL_KEY!r}, {url!r}"
    cells = [nbformat.v4.new_code_cell(textwrap.dedent(text).strip()) for text in [start, *CELLS]]
    notebook = nbformat.v4.new_notebook(cells=cells)
    runner = NotebookClient(
        notebook,
        timeout=120,
        kernel_name="python3",
        allow_errors=True,
        resources={"metadata": {"path": str(tmp_path)}},
    )
    with runner.setup_kernel():
        for number, cell in enumerate(notebook.cells):
            runner.execute_cell(cell, number)
        lines = [
            " ".join(process.cmdline())
            for process in [*ours(planted.rehearsal_home), *psutil.Process().children(True)]
        ]
    outputs = json.dumps([cell.outputs for cell in notebook.cells])
    assert "SmolLM2" in outputs, "the notebook did not get as far as the model"
    assert outputs.count("ename") >= 4, "the wrong uses were meant to fail"

    texts = {"outputs of the notebook": outputs, "command lines": "\n".join(lines)}
    # The pretend provider's own memory holds what it was given, as a real provider's does.
    theirs = {"state.json", "machine.json"}
    for file in tmp_path.rglob("*"):
        if file.is_file() and not file.is_symlink() and file.name not in theirs:
            texts[str(file)] = file.read_bytes().decode(errors="replace")
    assert any(name.endswith(".jsonl") for name in texts), "no run was saved"
    assert any(name.endswith("container.log") for name in texts), "no log was looked at"
    for place, text in texts.items():
        for secret in [*PLANTED.values(), MODEL_KEY]:
            assert secret not in text, f"a planted key is in {place}"
            assert secret[:-4] not in text, f"most of a planted key is in {place}"


def test_labels_hold_no_secret(planted):
    """What we write on a rental is its purpose and a random number."""
    from helpers import rent
    from helpers.rent import guard
    from helpers.serve import spec as serving

    provider = rent.connect(planted)
    spec = serving.ServingSpec(env={"HF_TOKEN": PLANTED["HF_TOKEN"]})
    with guard.rented(provider, spec, "label", planted, progress=print) as machine:
        assert machine.label.startswith("llm-course:label:")
        assert "planted" not in machine.label
