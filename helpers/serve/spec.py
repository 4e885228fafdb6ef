"""What to run on the instance, and when it is ready to answer."""

import shlex
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import requests

from helpers.endpoint import Endpoint
from helpers.errors import CourseError

# Model ids, revisions and image tags stand here and nowhere else: never in a notebook's cell.
MISTRAL_AWQ = "solidrust/Mistral-7B-Instruct-v0.3-AWQ"
VLLM_IMAGE = "vllm/vllm-openai:v0.33.0"
# RunPod keeps an image's entrypoint, and vLLM's own image has no SSH server: RunPod's does.
SSH_IMAGE = "runpod/pytorch:1.0.2-cu1281-torch280-ubuntu2404"
# RunPod's container disk, billed while the pod runs (docs, pods/pricing, 2026-08).
DISK_USD_PER_GB_MONTH = 0.10
STARTS, ENDED = "llm-course: the server starts", "llm-course: the server has ended with status"
# What the log of a server that gave up says, and what to do about it.
_REASONS = {
    "out of memory": "rent a GPU with more VRAM, or lower max_model_len",
    "No space left": "rent more disk: ServingSpec(disk_gb=...)",
    "401 Client Error": "the model is gated: accept its licence and set HF_TOKEN in .env",
    "GatedRepoError": "the model is gated: accept its licence and set HF_TOKEN in .env",
    "RepositoryNotFound": "the model's name is wrong, or it needs HF_TOKEN",
    "huggingface.co": "the host does not reach Hugging Face: destroy it and rent another one",
}


@dataclass(frozen=True, kw_only=True)
class ServingSpec:
    """One model on one vLLM server, in a form that every provider's launch understands.

    The defaults serve the course's model: Mistral 7B Instruct v0.3, quantized to 4 bits with AWQ
    (4.16 GB of weights, ungated), which vLLM recognises without a ``--quantization`` flag.

    Args:
        model: Hugging Face repository of the model.
        image: container image with its tag; the tag pins the vLLM version.
        max_model_len: longest sequence (prompt and answer) in tokens.
        tensor_parallel: GPUs that share each layer (one machine, fast links between them).
        pipeline_parallel: groups of GPUs that each hold a part of the layers.
        extra_args: more ``vllm serve`` arguments, each a word of its own.
        env: environment of the server, e.g. a Hugging Face token for gated models.
        port: port of the API on the instance.
        host: address the API binds to; ``127.0.0.1`` is reached through the SSH tunnel only.
        disk_gb: disk to rent: image (10-20 GB), weights, room for logs.
    """

    model: str = MISTRAL_AWQ
    image: str = VLLM_IMAGE
    max_model_len: int = 8192
    tensor_parallel: int = 1
    pipeline_parallel: int = 1
    extra_args: tuple[str, ...] = (
        *("--tokenizer-mode", "hf", "--config-format", "hf", "--load-format", "hf"),
    )
    env: dict[str, str] = field(default_factory=dict, repr=False)
    port: int = 8000
    host: str = "127.0.0.1"
    disk_gb: int = 40

    @property
    def gpus(self) -> int:
        """How many GPUs one server of it takes."""
        return self.tensor_parallel * self.pipeline_parallel

    def vllm_args(self) -> list[str]:
        """The arguments of ``vllm serve``, the model first."""
        split = {
            "--tensor-parallel-size": self.tensor_parallel,
            "--pipeline-parallel-size": self.pipeline_parallel,
        }
        parts = (word for flag, n in split.items() if n > 1 for word in (flag, str(n)))
        return [
            self.model,
            *("--host", self.host, "--port", str(self.port)),
            *("--max-model-len", str(self.max_model_len)),
            *parts,
            *self.extra_args,
        ]

    def command(self) -> str:
        """The ``vllm serve`` command line, quoted for a shell."""
        return shlex.join(["vllm", "serve", *self.vllm_args()])

    def docker(self) -> str:
        """The ``docker run`` line that serves this on a machine with an NVIDIA GPU.

        The image's entrypoint is ``vllm serve``. Variables are passed by name: docker takes their
        values from the environment it is started in, so none stands in the line.
        """
        names = [word for name in self.env for word in ("-e", name)]
        cache = "$HOME/.cache/huggingface:/root/.cache/huggingface"
        inside = replace(self, host="0.0.0.0").vllm_args()  # noqa: S104
        port = f"127.0.0.1:{self.port}:{self.port}"
        words = ["docker", "run", "--rm", "--gpus", "all", "--ipc=host", "-p", port, *names]
        return f'{shlex.join(words)} -v "{cache}" {shlex.join([self.image, *inside])}'

    def served(self) -> str:
        """The command line between two lines in the log: that it starts, that it has ended."""
        return f'echo "{STARTS}"; {self.command()}; echo "{ENDED} $?"'

    def onstart(self, before: str = "") -> str:
        """Script that starts the server when the instance boots.

        SSH launch modes replace the image's entrypoint, so nothing serves until this does. The
        output goes to the container's log and to ``~/vllm.log``, which survives a restart.

        Args:
            before: shell lines to run first, such as a dead-man's switch.
        """
        lines = [
            "#!/bin/sh",
            "touch ~/.no_auto_tmux  # a scripted login should not land in tmux",
            *([before] if before else []),
            f"({self.served()}) 2>&1 | tee -a ~/vllm.log &",
        ]
        return "\n".join([*lines, ""])


def wait_ready(
    base_url: str,
    *,
    api_key: str = "none",
    timeout_s: float = 1800,
    poll_s: float = 2,
    progress: Callable[[str], None] = lambda line: None,
    log: Callable[[], str] = lambda: "",
) -> str:
    """Wait until the server answers: it lists a model and completes one token with it.

    Args:
        base_url: root of the API including the version.
        api_key: bearer token of the server, if it asks for one.
        timeout_s: give up after this many seconds; a fresh 7B model downloads for minutes.
        poll_s: pause between two questions, in seconds.
        progress: called with one line on each question.
        log: gives the server's log; its last line is shown, and stands in the error.

    Returns:
        The model id to use in requests; with a LoRA adapter served, the adapter's.

    Raises:
        CourseError: when time is up, with the last thing the server said.
    """
    deadline = time.monotonic() + timeout_s
    headers = {"Authorization": f"Bearer {api_key}"}
    said = "no answer yet"
    while time.monotonic() < deadline:
        try:
            listing = requests.get(f"{base_url}/models", headers=headers, timeout=10)
            if listing.ok:
                model = _served(listing.json()["data"])
                request = {"model": model, "prompt": "Hi", "max_tokens": 1}
                reply = requests.post(
                    f"{base_url}/completions", json=request, headers=headers, timeout=120
                )
                if reply.ok:
                    return model
                said = f"completion: HTTP {reply.status_code}"
            else:
                said = f"HTTP {listing.status_code}"
            if listing.status_code == 401:
                raise CourseError(
                    "the model server refuses the API key",
                    "pass the key it was started with (--api-key)",
                )
        except requests.RequestException as error:
            # Refused or cut: normal while the image starts and the weights load.
            said = type(error).__name__
        except (ValueError, LookupError, TypeError):
            said = "an answer that is not the OpenAI API's"
        tail = log().strip()
        progress(f"model server: {said} | {tail.rpartition(chr(10))[2]}")
        if ENDED in tail.rpartition(STARTS)[2]:  # an end before the last start is history
            raise CourseError(f"the model server gave up:\n{tail[-1500:]}", _remedy(tail))
        time.sleep(poll_s)
    raise CourseError(
        f"the model server at {base_url} did not become ready in {timeout_s:.0f} s ({said})\n"
        f"{log().strip()[-1000:]}",
        "destroy the instance if the log shows no progress: `python -m helpers destroy`",
    )


def _served(models: list[dict]) -> str:
    """The first adapter, if one is served: vLLM lists it after the model that it changes."""
    return next((one["id"] for one in models if one.get("parent")), models[0]["id"])


def _remedy(log: str) -> str:
    found = (advice for words, advice in _REASONS.items() if words.lower() in log.lower())
    return next(found, "read the log above; `python -m helpers destroy` ends the rental")


def engine_name(base_url: str, api_key: str = "none") -> str:
    """What serves there, asked of the server itself: ``"vLLM 0.33.0"``, ``"llama.cpp"`` or ``""``.

    vLLM answers ``/version``; llama.cpp names itself as the owner of its models.
    """
    headers = {"Authorization": f"Bearer {api_key}"}
    root = base_url.rstrip("/").removesuffix("/v1")
    try:
        version = requests.get(f"{root}/version", headers=headers, timeout=10)
        if version.ok:
            return f"vLLM {version.json()['version']}"
        owner = requests.get(f"{base_url}/models", headers=headers, timeout=10)
        return {"llamacpp": "llama.cpp"}.get(owner.json()["data"][0]["owned_by"], "")
    except (requests.RequestException, ValueError, LookupError, TypeError):
        return ""


def endpoint(
    base_url: str, *, api_key: str = "none", hardware: str = "", source: str = "", **waiting
) -> Endpoint:
    """Wait for a server and describe it.

    Args:
        base_url: root of the API including the version.
        api_key: bearer token, if the server asks for one.
        hardware: what it runs on, for titles.
        source: where its figures come from: ``"rehearsal"``, ``"vast"``, ...
        **waiting: ``timeout_s``, ``poll_s``, ``progress``, ``log`` of :func:`wait_ready`.

    Returns:
        The endpoint, with the model id and the engine as the server names them.
    """
    model = wait_ready(base_url, api_key=api_key, **waiting)
    return Endpoint(
        base_url=base_url,
        model=model,
        api_key=api_key,
        engine=engine_name(base_url, api_key),
        hardware=hardware,
        source=source,
    )
