"""``vllm serve`` on the CPU, in the environment that ``vllm_env.sh`` makes.

A start takes half a minute of two cores, so tests share servers: put ``pytestmark = needs_vllm``
into the module and take the fixture ``vllm`` of ``conftest.py``, or open a server with other
arguments with ``serve``, once a module.
"""

import contextlib
import os
import signal
import socket
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest

from helpers.endpoint import Endpoint
from helpers.serve import ready
from helpers.serve.spec import ENDED, STARTS, ServingSpec
from helpers.settings import PROJECT

VLLM_ENV = Path(os.environ.get("VLLM_ENV", PROJECT / ".venv-vllm"))
MODEL = VLLM_ENV / "model"
DETAILS = "--enable-prompt-tokens-details"  # how much of a prompt came from the cache
READY_S = 300  # half a minute on two free cores; several on a busy machine
needs_vllm = [
    pytest.mark.vllm,
    pytest.mark.skipif(
        not (MODEL / "config.json").exists(),
        reason="no vLLM environment: bash tests/vllm_env.sh",
    ),
]


@dataclass(kw_only=True)
class Server:
    """A running ``vllm serve``.

    Args:
        endpoint: what it answers to, its API key in it.
        log_file: what it and its children write.
        process: the shell that started it; it leads a process group.
        waited: the lines that the course's readiness wait showed.
    """

    endpoint: Endpoint
    log_file: Path
    process: subprocess.Popen
    waited: list[str] = field(default_factory=list)

    def log(self, lines: int = 30) -> str:
        """The last lines of its log."""
        return "\n".join(self.log_file.read_text(errors="replace").splitlines()[-lines:])


@contextlib.contextmanager
def serve(
    folder: Path,
    *arguments: str,
    model: Path | str = MODEL,
    name: str = "smollm2",
    api_key: str = "",
    max_model_len: int = 1024,
    kv_cache_gb: int = 1,
) -> Iterator[Server]:
    """Start a server on a free port, wait with the course's own readiness wait, end it.

    Args:
        folder: for its log.
        arguments: more arguments of ``vllm serve``, a word each.
        model: folder of the model.
        name: the served model's name.
        api_key: what clients must show; empty for none.
        max_model_len: longest sequence in tokens.
        kv_cache_gb: memory of its KV cache, GiB.

    Raises:
        CourseError: it does not become ready; the end of its log is in the message.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    spec = ServingSpec(
        model=str(model),
        port=port,
        max_model_len=max_model_len,
        extra_args=("--served-model-name", name, "--enforce-eager", *arguments),
    )
    env = {
        **{name: value for name, value in os.environ.items() if name != "VLLM_ENV"},
        "PATH": os.pathsep.join([str(VLLM_ENV / "bin"), os.environ["PATH"]]),
        "VLLM_CPU_KVCACHE_SPACE": str(kv_cache_gb),
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_RPC_BASE_PATH": str(folder),  # its sockets, which it leaves behind
        "HF_HUB_OFFLINE": "1",
    }
    if api_key:
        env["VLLM_API_KEY"] = api_key  # not on the command line, where `ps` shows it
    log_file = folder / f"vllm-{port}.log"
    with log_file.open("wb") as out:
        process = subprocess.Popen(
            ["/bin/sh", "-c", f'echo "{STARTS}"; {spec.command()}; echo "{ENDED} $?"'],
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
            start_new_session=True,
        )
    waited = []
    try:
        endpoint = ready.endpoint(
            f"http://127.0.0.1:{port}/v1",
            api_key=api_key or "none",
            hardware="CPU",
            timeout_s=READY_S,
            poll_s=0.5,
            progress=waited.append,
            log=lambda: log_file.read_text(errors="replace"),
        )
        yield Server(endpoint=endpoint, log_file=log_file, process=process, waited=waited)
    finally:
        end(process)


def end(process: subprocess.Popen) -> None:
    """End the group that ``process`` leads: asked first, killed after 20 s."""
    group = [process, *psutil.Process(process.pid).children(recursive=True)]
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)
    psutil.wait_procs([one for one in group if one is not process], timeout=20)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
