"""``ENGINE=vllm``: the real ``vllm serve`` in a rehearsal machine, in its build for CPUs.

What the renter asked for goes to vLLM as it stands, but for what needs a GPU or belongs to another
model's files. Its port becomes a Unix socket in the machine's private folder, as llama.cpp's is.
"""

import argparse
import json
import os
import re
import shlex
import sys
from pathlib import Path
from typing import NoReturn

from helpers.rehearsal.model import TOOL_CALLER, TOOL_CALLING, link

# Left out, each with its value: what needs a GPU, and what describes another model's files.
_LEFT_OUT = (
    *("--quantization -q", "--gpu-memory-utilization", "--dtype"),
    *("--tensor-parallel-size -tp", "--pipeline-parallel-size -pp"),
    *("--served-model-name", "--tokenizer", "--tokenizer-mode", "--config-format", "--load-format"),
    *("--revision", "--chat-template", "--tool-call-parser", "--reasoning-parser"),
)
_RUN = Path(__file__).with_name("vllm_main.py")


def serve(socket: Path, asked: argparse.Namespace, kept: list[str]) -> NoReturn:
    """Become ``vllm serve``.

    Args:
        socket: where it listens.
        asked: what the renter asked for, as :func:`parse` returns it.
        kept: arguments that it gets as they are, from there, too.
    """
    folder, env = Path(os.environ["REHEARSAL_MODEL"]), Path(os.environ["REHEARSAL_VLLM_ENV"])
    # The rehearsal's own model is where tests/vllm_env.sh puts it.
    name = TOOL_CALLER if folder == env / "model" else folder.name
    made = arguments(asked, kept, link(folder, name), name)
    words = ["serve", *made, "--uds", str(socket)]
    print(f"rehearsal: {name} on vLLM's CPU build answers in place of {asked.model}")
    print(f"rehearsal: {shlex.join(['vllm', *words])}", flush=True)
    ours = {
        "HF_HUB_OFFLINE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_CPU_KVCACHE_SPACE": os.environ.get("VLLM_CPU_KVCACHE_SPACE", "1"),  # GiB
        "VLLM_RPC_BASE_PATH": os.environ["LOAD_UNIX_SOCKETS"],  # goes with the machine
    }
    if asked.api_key:
        ours["VLLM_API_KEY"] = asked.api_key  # neither in the log nor on the command line
    python = str(env / "bin" / "python")
    os.execve(python, [python, "-P", str(_RUN), *words], os.environ | ours)  # noqa: S606


def parse(words: list[str]) -> tuple[argparse.Namespace, list[str], list[str]]:
    """Read what followed ``vllm serve``.

    Returns:
        What was asked for (``model``, ``port``, ``api_key``, ``max_num_seqs``, ``max_model_len``,
        ``enable_auto_tool_choice``), the other words, and of :data:`_LEFT_OUT` those that were
        given, with their values.

    Raises:
        SystemExit: a value that an option cannot have.
    """
    parser = argparse.ArgumentParser(prog="vllm serve", add_help=False, allow_abbrev=False)
    # vLLM takes an underscore for a hyphen in an option's name, but neither in its value nor after
    # a dot, where a key of its JSON stands.
    words = [re.sub("^--[^=.]+", lambda name: name[0].replace("_", "-"), word) for word in words]
    parser.add_argument("--model")
    parser.add_argument("--host")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--api-key", default=os.environ.get("VLLM_API_KEY"))
    parser.add_argument("--max-num-seqs", type=int)
    parser.add_argument("--max-model-len", type=_length)
    parser.add_argument("--enable-auto-tool-choice", action=argparse.BooleanOptionalAction)
    options = [parser.add_argument(*names.split()) for names in _LEFT_OUT]
    asked, kept = parser.parse_known_args(words)
    if asked.max_num_seqs is not None and asked.max_num_seqs < 1:
        parser.error(f"argument --max-num-seqs: {asked.max_num_seqs} is less than 1")
    if not asked.model:  # without its option it stands first of what is left, or last
        at = next((at for at in (0, -1) if kept and not kept[at].startswith("-")), None)
        asked.model = "vLLM's default model" if at is None else kept.pop(at)
    given = ((option.option_strings[0], getattr(asked, option.dest)) for option in options)
    return asked, kept, [word for pair in given if pair[1] is not None for word in pair]


def count(word: str) -> int:
    """How many tokens: ``8192``, ``8k`` and ``8.5k`` (thousands), ``8K`` (of 1,024), as in vLLM."""
    found = re.fullmatch(r"(\d+|\d+\.\d+(?=[km]))([kmKM]?)", word.strip())
    units = {"": 1, "k": 10**3, "m": 10**6, "K": 2**10, "M": 2**20}
    number = int(float(found[1]) * units[found[2]]) if found else 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"{word} is not a whole number of at least 1")
    return number


def _length(word: str) -> int | None:
    """A sequence's, in tokens; None where vLLM is to find it out."""
    return None if word.lower() in ("auto", "-1") else count(word)


def arguments(asked: argparse.Namespace, kept: list[str], folder: Path, name: str) -> list[str]:
    """Turn a renter's arguments into those of the CPU build, without address and key.

    Args:
        asked: what the renter asked for, as :func:`parse` returns it.
        kept: the other words, from there, too.
        folder: the model's files, also the argument that names them.
        name: the name under which it is served; an adapter's ends in ``-tools``.
    """
    config = json.loads((folder / "config.json").read_text("utf-8-sig"))
    longest = config.get("max_position_embeddings", sys.maxsize)
    kept = [str(folder), "--served-model-name", name, "--enforce-eager", *kept]
    if asked.max_num_seqs:
        kept += ["--max-num-seqs", str(asked.max_num_seqs)]
    if asked.max_model_len:
        kept += ["--max-model-len", str(min(asked.max_model_len, longest))]
    if asked.enable_auto_tool_choice:
        kept += ["--enable-auto-tool-choice", "--tool-call-parser", "hermes"]
        if name == TOOL_CALLER:  # what makes it call functions, as on llama.cpp
            rank = json.loads((TOOL_CALLING / "adapter_config.json").read_text())["r"]
            kept += ["--chat-template", str(TOOL_CALLING / "hermes.jinja"), "--enable-lora"]
            kept += ["--max-lora-rank", str(rank), "--lora-modules", f"{name}-tools={TOOL_CALLING}"]
    return kept
