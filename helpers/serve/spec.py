"""What to run on the instance: one model on one vLLM server, and every way to start it."""

import shlex
from dataclasses import dataclass, field, replace
from itertools import pairwise

# Model ids, revisions and image tags stand here and nowhere else: never in a notebook's cell.
MISTRAL_AWQ = "solidrust/Mistral-7B-Instruct-v0.3-AWQ"
VLLM_IMAGE = "vllm/vllm-openai:v0.33.0"
# RunPod keeps an image's entrypoint, and vLLM's own image has no SSH server: RunPod's does.
SSH_IMAGE = "runpod/pytorch:1.0.2-cu1281-torch280-ubuntu2404"
# RunPod's container disk, billed while the pod runs (docs, pods/pricing, 2026-08).
DISK_USD_PER_GB_MONTH = 0.10
HF_FORMAT = "--tokenizer-mode hf --config-format hf --load-format hf"
DETAILS = "--enable-prompt-tokens-details"  # how much of a prompt was cached: cheaper in a bill
STARTS, ENDED = "llm-course: the server starts", "llm-course: the server has ended with status"


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
    extra_args: tuple[str, ...] = tuple(HF_FORMAT.split())
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
        words = [self.model, "--host", self.host, "--port", str(self.port)]
        words += ["--max-model-len", str(self.max_model_len), DETAILS]
        if self.tensor_parallel > 1:
            words += ["--tensor-parallel-size", str(self.tensor_parallel)]
        if self.pipeline_parallel > 1:
            words += ["--pipeline-parallel-size", str(self.pipeline_parallel)]
        return [*words, *self.extra_args]

    def flag(self, name: str) -> str | None:
        """What a flag of ``vllm serve`` is set to: ``""`` for a bare switch, None when not given.

        >>> spec = ServingSpec(extra_args=("--tool-call-parser", "mistral", "--enable-lora"))
        >>> spec.flag("--tool-call-parser"), spec.flag("--enable-lora"), spec.flag("--seed")
        ('mistral', '', None)
        """
        for word, value in pairwise([*self.vllm_args(), "--"]):
            if word == name:
                return "" if value.startswith("--") else value
        return None

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

    def program(self) -> str:
        """Shell lines that write ``~/serve.sh``: it notes its process id, then becomes vLLM."""
        lines = ("cat > ~/serve.sh << 'END'", "echo $$ > ~/vllm.pid", f"exec {self.command()}")
        return "\n".join([*lines, "END"])

    def served(self) -> str:
        """Shell lines that run ``~/serve.sh``, and again when ``~/again`` is there (`replaced`).

        The log gets a line before each start and one after each end.
        """
        return (
            f"{self.program()}\n"
            f'while echo "{STARTS}"; rm -f ~/again\n'
            f'do sh ~/serve.sh; echo "{ENDED} $?"\n'
            "   until test -e ~/again; do sleep 0.2; done\n"
            "done"
        )

    def replaced(self) -> str:
        """Shell lines that stop the server of ``served``, and let it start this one instead."""
        return (
            "test -e ~/serve.sh || { echo no server of this course is here >&2; exit 1; }\n"
            f"{self.program()}\n"
            "kill $(cat ~/vllm.pid) 2> /dev/null\n"
            "while kill -0 $(cat ~/vllm.pid) 2> /dev/null; do sleep 0.2; done\n"
            "touch ~/again; while test -e ~/again; do sleep 0.2; done"
        )

    def onstart(self, before: str = "") -> str:
        """Script that starts the server when the instance boots.

        SSH launch modes replace the image's entrypoint, so nothing serves until this does. The
        output goes to the container's log and to ``~/vllm.log``, which survives a restart.

        Args:
            before: shell lines to run first, such as a dead-man's switch.
        """
        tmux = "touch ~/.no_auto_tmux  # a scripted login should not land in tmux"
        serve = f"({self.served()}) 2>&1 | tee -a ~/vllm.log &\n"
        return "\n".join(filter(None, ["#!/bin/sh", tmux, before, serve]))
