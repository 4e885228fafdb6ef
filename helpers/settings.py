"""Environment variables and ``.env`` -> one validated Settings object."""

from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Literal

import platformdirs
from dotenv.parser import parse_stream
from pydantic import AfterValidator, Field, SecretStr, ValidationError, ValidationInfo
from pydantic_settings import BaseSettings, SettingsConfigDict

from helpers.endpoint import clean_key, spare_loopback
from helpers.errors import CourseError

PROJECT = Path(__file__).resolve().parents[1]
ASSETS = PROJECT / "assets"
_APP = "llm-serving-course"

HomePath = Annotated[Path, AfterValidator(Path.expanduser)]
"""A path in which ``~`` is the reader's home."""


def _clean(key: SecretStr, info: ValidationInfo) -> SecretStr:
    return SecretStr(clean_key(key.get_secret_value(), str(info.field_name).upper()))


Key = Annotated[SecretStr, AfterValidator(_clean)]
"""A key that can be sent as it is."""


class Settings(BaseSettings):
    """What the course needs to know about the reader: provider, keys, limits, places.

    Each field is read from the environment variable of the same name in capitals, then from
    ``.env`` in the project's folder. Keys are ``SecretStr``: their text appears in no ``repr``.
    """

    model_config = SettingsConfigDict(
        env_file=PROJECT / ".env",
        env_file_encoding="utf-8-sig",  # Windows puts a byte order mark first
        env_ignore_empty=True,
        extra="ignore",
        frozen=True,
        # A wrong value is reported without the value: it may be a key pasted into the wrong line.
        hide_input_in_errors=True,
    )

    provider: Literal["rehearsal", "rehearsal-runpod", "vast", "runpod"] = "rehearsal"
    vast_api_key: Key | None = None
    runpod_api_key: Key | None = None
    hf_token: Key | None = None

    max_usd_per_hour: float = Field(default=0.80, gt=0)
    budget_usd: float = Field(default=5.0, gt=0)
    lifetime_hours: float = Field(default=4.0, gt=0)
    confirm: bool = True
    server_url: str = ""
    ssh_key: HomePath = Path("~/.ssh/id_llm_course")
    ssh_passphrase: SecretStr | None = None

    runs_dir: HomePath = PROJECT / "runs"
    rehearsal_home: HomePath = platformdirs.user_state_path(_APP)
    rehearsal_idle_s: float = Field(default=1800, gt=0)
    model_cache: HomePath = platformdirs.user_cache_path(_APP)
    engine: Literal["llamacpp", "vllm"] = "llamacpp"
    vllm_env: HomePath = PROJECT / ".venv-vllm"
    local_model: str = ""
    sky_python: HomePath = PROJECT / ".venv-sky" / "bin" / "python"

    def require(self, name: str, url: str) -> str:
        """The text of a key, or the sentence that says where to get it.

        Args:
            name: field name, e.g. ``"vast_api_key"``.
            url: page on which the reader creates such a key.

        Raises:
            CourseError: when the key is not set.
        """
        text = (getattr(self, name) or SecretStr("")).get_secret_value()
        if not text:
            hint = f"create a key at {url}, copy .env.example to .env and paste it there "
            hint += "(or set PROVIDER=rehearsal to go on without an account)"
            raise CourseError(f"{name.upper()} is not set", hint)
        return text


def read() -> Settings:
    """Read the settings now.

    Returns:
        The validated settings.

    Raises:
        CourseError: when a variable has a value that cannot be meant, naming the variable, when a
            line of ``.env`` would not count, or when other users can read that file.
    """
    spare_loopback()
    env_file = Settings.model_config["env_file"]
    try:
        if isinstance(env_file, Path) and env_file.exists():
            _check(env_file)
        return Settings()
    except (OSError, UnicodeDecodeError):
        what = f"{env_file} is not a text file that you can read"
        raise CourseError(what, "save it as UTF-8, as a file of your own") from None
    except ValidationError as error:
        wrong = "; ".join(f"{str(e['loc'][0]).upper()}: {e['msg']}" for e in error.errors())
        hint = "correct it in .env or in the environment; .env.example explains each"
        raise CourseError(f"a setting is not valid: {wrong}", hint) from None


def _check(env_file: Path) -> None:
    """See that nobody else reads the file, and that each of its lines is one of ours or no slip."""
    if env_file.stat().st_mode & 0o077:
        what = f"{env_file} can be read by other users of this machine, and it is there for keys"
        hint = f"chmod 600 {env_file}; on a Windows drive of WSL (/mnt/c) that has no effect: "
        raise CourseError(what, f"{hint}move the course into your Linux home")
    ours = {name.upper() for name in Settings.model_fields}
    with env_file.open(encoding="utf-8-sig") as lines:
        for line in parse_stream(lines):
            place, name = f"line {line.original.line} of {env_file}", (line.key or "").upper()
            if line.error or (name and line.value is None):
                raise CourseError(f"{place} is not NAME=value", "write = after the name, no colon")
            like = [one for one in ours if one.startswith(f"{name}_")]
            like += get_close_matches(name, ours, 1, 0.8)
            if name and like and name not in ours:
                what = f"{place}: there is no setting {name}, so it has no effect"
                raise CourseError(what, f"is {like[0]} meant? .env.example has them all")
