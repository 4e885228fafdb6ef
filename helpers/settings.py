"""Environment variables and ``.env`` -> one validated Settings object."""

from pathlib import Path
from typing import Literal

import platformdirs
from pydantic import Field, SecretStr, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from helpers.errors import CourseError

PROJECT = Path(__file__).resolve().parents[1]
ASSETS = PROJECT / "assets"
_APP = "llm-serving-course"


class Settings(BaseSettings):
    """What the course needs to know about the reader: provider, keys, limits, places.

    Each field is read from the environment variable of the same name in capitals, then from
    ``.env`` in the project's folder. Keys are ``SecretStr``: their text appears in no ``repr``.
    """

    model_config = SettingsConfigDict(
        env_file=PROJECT / ".env",
        env_ignore_empty=True,
        extra="ignore",
        frozen=True,
        # A wrong value is reported without the value: it may be a key pasted into the wrong line.
        hide_input_in_errors=True,
    )

    provider: Literal["rehearsal", "rehearsal-runpod", "vast", "runpod"] = "rehearsal"
    vast_api_key: SecretStr | None = None
    runpod_api_key: SecretStr | None = None
    hf_token: SecretStr | None = None

    max_usd_per_hour: float = Field(0.80, gt=0)
    budget_usd: float = Field(10.0, gt=0)
    lifetime_hours: float = Field(4.0, gt=0)
    confirm: bool = True
    ssh_key: Path = Path("~/.ssh/id_llm_course")
    ssh_passphrase: SecretStr | None = None

    runs_dir: Path = PROJECT / "runs"
    rehearsal_home: Path = platformdirs.user_state_path(_APP)
    rehearsal_idle_s: float = Field(1800, gt=0)
    model_cache: Path = platformdirs.user_cache_path(_APP)
    engine: Literal["llamacpp", "vllm"] = "llamacpp"
    vllm_env: Path = PROJECT / ".venv-vllm"
    local_model: str = ""
    sky_python: Path = PROJECT / ".venv-sky" / "bin" / "python"

    def model_post_init(self, _context) -> None:
        """Expand ``~`` in every path."""
        paths = ("ssh_key", "runs_dir", "rehearsal_home", "model_cache", "vllm_env", "sky_python")
        for name in paths:
            object.__setattr__(self, name, getattr(self, name).expanduser())

    def require(self, name: str, url: str) -> str:
        """The text of a key, or the sentence that says where to get it.

        Args:
            name: field name, e.g. ``"vast_api_key"``.
            url: page on which the reader creates such a key.

        Raises:
            CourseError: when the key is not set.
        """
        secret = getattr(self, name)
        if secret is None or not secret.get_secret_value().strip():
            raise CourseError(
                f"{name.upper()} is not set",
                f"create a key at {url}, copy .env.example to .env and paste it there "
                "(or set PROVIDER=rehearsal to go on without an account)",
            )
        return secret.get_secret_value().strip()


def load() -> Settings:
    """Read the settings now.

    Returns:
        The validated settings.

    Raises:
        CourseError: when a variable has a value that cannot be meant, naming the variable, or
            when other users can read ``.env``.
    """
    env_file = Settings.model_config["env_file"]
    if env_file and Path(env_file).exists() and Path(env_file).stat().st_mode & 0o077:
        raise CourseError(
            f"{env_file} can be read by other users of this machine, and it is there for keys",
            f"chmod 600 {env_file}",
        )
    try:
        return Settings()
    except UnicodeDecodeError:
        raise CourseError(f"{env_file} is not a text file", "copy .env.example anew") from None
    except ValidationError as error:
        wrong = "; ".join(f"{str(e['loc'][0]).upper()}: {e['msg']}" for e in error.errors())
        raise CourseError(
            f"a setting is not valid: {wrong}",
            "correct it in .env or in the environment; .env.example explains each",
        ) from None
