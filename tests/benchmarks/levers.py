"""What vLLM's options change on vLLM itself: writes ``assets/levers.json``.

``python tests/benchmarks/levers.py`` on a quiet machine, in about ten minutes, with the
environment that ``tests/vllm_env.sh`` makes. It runs notebook 11's own cells with
``ENGINE=vllm``, up to the one that reads this file, so the two engines are asked the same.
"""

import json
import os
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

import nbformat
from nbclient import NotebookClient

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from support.vllm_server import VLLM_ENV

from helpers.settings import ASSETS, PROJECT

NOTEBOOK, TARGET = PROJECT / "notebooks" / "11_levers.ipynb", ASSETS / "levers.json"
SAID = "print(json.dumps({'engine': endpoint.engine, 'title': endpoint.title, 'rows': rows}))"
CLEAN_UP = "rent.guard.end(config, 'mistral')"


def main() -> None:
    """Run the cells, and write down what they measured."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as home:
        os.environ |= {
            "ENGINE": "vllm",
            "VLLM_ENV": str(VLLM_ENV),
            "PROVIDER": "rehearsal",
            "REHEARSAL_HOME": f"{home}/rehearsal",
            "RUNS_DIR": f"{home}/runs",
            "SSH_KEY": f"{home}/key",
        }
        notebook = nbformat.read(NOTEBOOK, as_version=4)
        last = next(n for n, cell in enumerate(notebook.cells) if TARGET.name in cell.source)
        cells = [cell for cell in notebook.cells[:last] if cell.cell_type == "code"]
        cells += [nbformat.v4.new_code_cell(text) for text in (SAID, CLEAN_UP)]
        notebook.cells = cells
        client = NotebookClient(
            notebook, timeout=900, resources={"metadata": {"path": str(NOTEBOOK.parent)}}
        )
        client.execute()
    said = json.loads(cells[-2].outputs[0].text)
    found = {
        "engine": said["engine"],
        "model": "SmolLM2-135M-Instruct, bfloat16",
        "hardware": said["title"].split(", ")[1].removeprefix(f"{said['engine']} on "),
        "date": datetime.now(UTC).date().isoformat(),
        "seconds": round(time.monotonic() - began),
        "rows": said["rows"],
    }
    TARGET.write_text(json.dumps(found, indent=1) + "\n")
    print(f"{TARGET.name}: {len(found['rows'])} rows, {found['engine']}, {found['seconds']} s")


if __name__ == "__main__":
    main()
