"""The rehearsal's model server: stands where ``vllm`` stands on a rented machine.

The instance puts this on its PATH as ``vllm``, so that the very onstart script which starts vLLM
on a GPU starts llama.cpp's server here, or with ``ENGINE=vllm`` vLLM on the CPU (``engine_vllm``).
It listens on a Unix socket in the instance's private folder; the instance's SSH server forwards
its port to it, and there is no other way in.
"""

import argparse
import os
import re
import signal
import sys
from pathlib import Path
from typing import Any

from helpers.rehearsal import engine_vllm, flags, tool_choice
from helpers.rehearsal.model import TOOL_CALLER, TOOL_CALLING, link

# vLLM's default (256) is meant for a GPU: a laptop's throughput is flat from 8 sequences on.
DEFAULT_SLOTS, MAX_SLOTS = 8, 32
HTTP_THREADS = 128
# Prompts that left their slot are kept for a later one like them: llama.cpp's limit is 8 GiB.
PROMPT_CACHE_MIB = 128


def main() -> None:
    """``vllm serve MODEL [--port N] [--api-key K] ...``; of the rest, see ``flags``."""
    if fault := os.environ.get("REHEARSAL_FAULT"):
        sys.exit(fault)
    options, kept, dropped = engine_vllm.parse(sys.argv[2:])
    if dropped:
        print(f"rehearsal: for GPUs or other models, without a meaning here: {' '.join(dropped)}")
    socket = Path(os.environ["LOAD_UNIX_SOCKETS"]) / f"{options.port}.sock"
    socket.unlink(missing_ok=True)
    if os.environ["REHEARSAL_ENGINE"] == "vllm":
        engine_vllm.serve(socket, options, kept)
    model = Path(os.environ["REHEARSAL_MODEL"])
    name = re.sub(r"[.-](Q\d\w*|F16|BF16)$", "", model.stem)
    calls_tools = options.enable_auto_tool_choice and name == TOOL_CALLER
    if calls_tools:
        name += "-tools"
    print(f"rehearsal: {name} on llama.cpp answers in place of {options.model}", flush=True)
    # With tools, clients come through ``tool_choice``, and llama.cpp listens behind it.
    listens = socket.with_name(f"engine-{socket.name}") if calls_tools else socket
    listens.unlink(missing_ok=True)
    import xllamacpp  # loads llama.cpp

    params = xllamacpp.CommonParams()
    params.model.path = str(link(model, model.name))
    params.model_alias = {name}
    params.hostnames = [str(listens)]
    _size(params, options)
    flags.translate(params, options, kept)
    if calls_tools:
        adapter = xllamacpp.CommonAdapterLoraInfo()
        adapter.path, adapter.scale = str(TOOL_CALLING / "adapter.gguf"), 1.0
        params.lora_adapters = [adapter]
        params.chat_template = (TOOL_CALLING / "hermes.jinja").read_text()
    _server = xllamacpp.Server(params)  # runs in threads of its own until the process ends
    print(f"rehearsal: ready on port {options.port}, {params.n_parallel} slots", flush=True)
    if calls_tools:
        tool_choice.serve(socket, listens)
    signal.pause()


def _size(params: Any, options: argparse.Namespace) -> None:
    """Set what a machine of this size carries: threads, slots, caches."""
    # llama.cpp counts the computer's cores; threads beyond the machine's own wait for each other.
    cores = int(os.environ["REHEARSAL_CORES"])
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = cores
    # Without OpenMP (macOS) its own threads wait: asleep, as rehearsal_bin/vllm has it with OpenMP.
    params.cpuparams.poll = params.cpuparams_batch.poll = 0
    params.n_parallel = min(options.max_num_seqs or DEFAULT_SLOTS, MAX_SLOTS)
    if (options.max_num_seqs or 0) > MAX_SLOTS:
        print(f"rehearsal: --max-num-seqs is {MAX_SLOTS} here, not {options.max_num_seqs}")
    params.cache_ram_mib = PROMPT_CACHE_MIB
    params.endpoint_metrics = True
    # One thread serves one connection: waiting requests must leave some for /metrics.
    params.n_threads_http = params.n_parallel + HTTP_THREADS
    params.api_keys = [options.api_key] if options.api_key else []


if __name__ == "__main__":
    main()
