"""What rounding its weights costs the rehearsal's model: writes ``assets/quantized.json``.

``python tests/benchmarks/quantized.py [--speed] [NAME ...]``, with ``pip install gguf==0.19.0`` in
the same environment. Eight formats take about ten minutes on two cores, and their ``--speed`` one
more, for which the machine should be quiet; named formats replace their entries.

The 16-bit weights that the model was trained with are not in the file that the course fetches,
which is a Q4_1. So the reference is that file with every number written out in 16 bits, and all
the others are made from it. To round it to Q4_1 again would lose nothing, because it has no number
between those of Q4_1. Formats with fewer bits than Python's ``gguf`` writes are rounded as Q4_0 is,
and stored in 16 bits: the same answers from a larger file. The embeddings stay as they are (Q8_0).
"""

import argparse
import asyncio
import json
import os
import tempfile
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import numpy as np
from gguf import GGMLQuantizationType, GGUFReader, GGUFValueType, GGUFWriter, quants
from vllm_seen import _cpu

from helpers import load, measure, rehearsal, rent, serve, settings, tools
from helpers.rehearsal import model
from helpers.settings import ASSETS

FILE, BLOCK = ASSETS / "quantized.json", 32
CALLS = ("F16", "Q4_0")  # asked for function calls, too: two minutes each
TOOLS = ("--enable-auto-tool-choice", "--tool-call-parser", "hermes")
# Name -> how the weights are written, bits that they are rounded to, how the KV cache is kept.
FORMATS = {
    "F16": ("F16", None, "auto"),
    "F16, asked again": ("F16", None, "auto"),
    "F16, KV cache in 8 bits": ("F16", None, "fp8"),
    "Q8_0": ("Q8_0", None, "auto"),
    "Q5_0": ("Q5_0", None, "auto"),
    "Q4_0": ("Q4_0", None, "auto"),
    "3 bits": ("F16", 3, "auto"),
    "2 bits": ("F16", 2, "auto"),
}


def rounded(weights: np.ndarray, bits: int) -> np.ndarray:
    """Each block of 32 to so many bits, as Q4_0 does it to four."""
    blocks = weights.reshape(-1, BLOCK)
    top = np.take_along_axis(blocks, np.abs(blocks).argmax(1, keepdims=True), 1)
    half = 2 ** (bits - 1)
    scale = (top / -half).astype(np.float16).astype(np.float32)
    steps = np.divide(blocks, scale, out=np.zeros_like(blocks), where=scale != 0)
    levels = np.clip(np.floor(steps + half + 0.5), 0, 2 * half - 1) - half
    return (levels * scale).reshape(weights.shape)


def write(source: Path, target: Path, kind: str, bits: int | None) -> float:
    """Write the model with its matrices in another format.

    Returns:
        The error of the rounding: root mean square, relative to that of the weights.
    """
    reader, wanted = GGUFReader(source), GGMLQuantizationType[kind]
    writer = GGUFWriter(target, "llama")
    for name, field in reader.fields.items():
        if not name.startswith("GGUF.") and name != "general.architecture":
            inner = field.types[-1] if field.types[0] == GGUFValueType.ARRAY else None
            writer.add_key_value(name, field.contents(), field.types[0], inner)
    wrong = size = 0.0
    for tensor in reader.tensors:
        if tensor.tensor_type != GGMLQuantizationType.Q4_1:
            writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
            continue
        exact = quants.dequantize(tensor.data, tensor.tensor_type)
        data = quants.quantize(rounded(exact, bits) if bits else exact, wanted)
        writer.add_tensor(tensor.name, data, raw_dtype=wanted)
        wrong += float(np.square(quants.dequantize(data, wanted) - exact).sum())
        size += float(np.square(exact).sum())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return (wrong / size) ** 0.5


def look(file: Path, kv_cache: str, config: settings.Settings, calls: bool) -> dict:
    """Serve a file and ask all questions, and those that need tools, too, if that is wanted."""
    found: dict = {}
    with served(file, config, "--kv-cache-dtype", kv_cache) as endpoint:
        frame = measure.answers(endpoint)
        assert not any(frame["cause"]), frame["cause"]
        found |= frame[["kind", "question", "expected", "answer", "right"]].to_dict("list")
    if calls:
        with served(file, config, *TOOLS) as endpoint:
            overall = asyncio.run(tools.evaluate(endpoint)).overall()
            found["tool_calls"] = overall[["right", "questions"]].T.to_dict("list")
    return found


def speed(file: Path, config: settings.Settings) -> dict:
    """Serve a file, and time one user."""
    work, one = load.Synthetic(input_tokens=32, output_tokens=64), load.ClosedLoop(users=1)
    with served(file, config) as endpoint:
        path = file.with_name("run.jsonl")
        run = asyncio.run(load.run(endpoint, work, one, requests=8, path=path))
    return {"one_user_tokens_per_s": round(measure.summary(run).output_tokens_per_s, 1)}


@contextmanager
def served(file: Path, config: settings.Settings, *extra: str):
    """An endpoint of the rehearsal that serves this file."""
    config = config.model_copy(update={"provider": "rehearsal", "local_model": str(file)})
    rehearsal.stop(config)  # the one that runs serves another file
    provider, spec = rent.connect(config), serve.ServingSpec()
    spec = serve.ServingSpec(extra_args=(*spec.extra_args, *extra))
    try:
        with rent.guard.rented(provider, spec, "quantized", config) as machine:
            yield rent.ssh.tunnel(machine, config).endpoint()
    finally:
        rehearsal.stop(config)


def main() -> None:
    """Make each format, look at it, and write down."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--speed", action="store_true", help="only that, on a quiet machine")
    parser.add_argument("names", nargs="*", help=f"by default all: {', '.join(FORMATS)}")
    options, config = parser.parse_args(), settings.read()
    source = model.path(config)
    for name in options.names or FORMATS:
        kind, bits, kv_cache = FORMATS[name]
        if options.speed and name != kind:
            continue  # it has the size and speed of another one
        with tempfile.TemporaryDirectory() as folder:
            # By this name the rehearsal knows for which model its tool-calling adapter is.
            file = Path(folder, f"{model.TOOL_CALLER}.{kind}.gguf")
            error = write(source, file, kind, bits)
            found = {"weights_mb": round(file.stat().st_size / 1e6, 1)}
            found["rounding_error"] = round(error, 5)
            calls = name in CALLS
            found |= speed(file, config) if options.speed else look(file, kv_cache, config, calls)
        note(name, found, source.name)


def note(name: str, found: dict, source: str) -> None:
    """Put what was found into the recording."""
    known = json.loads(FILE.read_text()) if FILE.exists() else {"formats": {}}
    if "question" in found:
        known["asked"] = {key: found.pop(key) for key in ("kind", "question", "expected")}
    formats = known.pop("formats")
    formats[name] = formats.get(name, {}) | found
    head = {
        "engine": f"llama.cpp (xllamacpp {version('xllamacpp')})",
        "model": f"{model.TOOL_CALLER}, from {source}",
        "hardware": f"{os.cpu_count()} CPU cores ({_cpu()})",
        "date": datetime.now(UTC).date().isoformat(),
    }
    ordered = {one: formats[one] for one in FORMATS if one in formats}
    whole = known | head | {"formats": ordered}
    FILE.write_text(json.dumps(whole, indent=1, ensure_ascii=False) + "\n")
    print(name, {key: value for key, value in found.items() if not isinstance(value, list)})


if __name__ == "__main__":
    main()
