"""Settings: one clear sentence for a missing or wrong value, and secrets that stay secret."""

import pytest

from helpers import rent, settings
from helpers.errors import CourseError

KEY = "vast-key-0123456789abcdef"


def test_default_needs_nothing(monkeypatch):
    """A stranger without any key gets the rehearsal."""
    assert settings.read().provider == "rehearsal"


def test_missing_key_says_where_to_get_it(monkeypatch):
    """PROVIDER=vast without a key names the variable and the page."""
    monkeypatch.setenv("PROVIDER", "vast")
    with pytest.raises(CourseError) as caught:
        rent.connect(settings.read())
    assert "VAST_API_KEY is not set" in str(caught.value)
    assert "https://cloud.vast.ai/manage-keys/" in str(caught.value)


@pytest.mark.parametrize("blank", ["", "   "])
def test_blank_key_counts_as_missing(monkeypatch, blank):
    """``VAST_API_KEY=`` copied from the example is not a key."""
    monkeypatch.setenv("PROVIDER", "vast")
    monkeypatch.setenv("VAST_API_KEY", blank)
    with pytest.raises(CourseError, match="is not set"):
        rent.connect(settings.read())


def test_key_text_appears_nowhere(monkeypatch):
    """Neither repr nor str nor the provider built with it shows the key."""
    monkeypatch.setenv("VAST_API_KEY", KEY)
    config = settings.read()
    assert config.vast_api_key.get_secret_value() == KEY
    shown = repr(config) + str(config) + repr(config.model_dump())
    assert KEY not in shown


def test_wrong_value_names_the_variable_and_hides_the_value(monkeypatch):
    """A key pasted into the wrong line is reported by the line's name only."""
    monkeypatch.setenv("PROVIDER", KEY)
    with pytest.raises(CourseError) as caught:
        settings.read()
    assert "PROVIDER" in str(caught.value)
    assert KEY not in str(caught.value)


def test_env_file_is_read_and_the_environment_wins(tmp_path, monkeypatch):
    """``.env`` fills what the environment leaves open, and only that."""
    (tmp_path / ".env").write_text(f"VAST_API_KEY={KEY}\nMAX_USD_PER_HOUR=0.3\n")
    (tmp_path / ".env").chmod(0o600)
    monkeypatch.setitem(settings.Settings.model_config, "env_file", tmp_path / ".env")
    monkeypatch.setenv("MAX_USD_PER_HOUR", "0.5")
    config = settings.read()
    assert config.vast_api_key.get_secret_value() == KEY
    assert config.max_usd_per_hour == 0.5


def test_env_file_that_others_can_read_is_refused(tmp_path, monkeypatch):
    """Keys in a file that every user of the machine can read: told, with the command."""
    (tmp_path / ".env").write_text(f"VAST_API_KEY={KEY}\n")
    (tmp_path / ".env").chmod(0o644)
    monkeypatch.setitem(settings.Settings.model_config, "env_file", tmp_path / ".env")
    with pytest.raises(CourseError, match=r"chmod 600 .*WSL"):  # where chmod changes nothing
        settings.read()


@pytest.fixture
def env_file(tmp_path, monkeypatch):
    """A ``.env`` of the test's own."""
    file = tmp_path / ".env"
    file.touch(mode=0o600)
    monkeypatch.setitem(settings.Settings.model_config, "env_file", file)
    return file


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("MAX_USD_PER_HOURS=0.3", "no setting MAX_USD_PER_HOURS.*\n.*MAX_USD_PER_HOUR meant"),
        ("max-usd-per-hour=0.3", "MAX_USD_PER_HOUR meant"),
        ("BUDGET=3", "BUDGET_USD meant"),
        (f"VAST_KEY={KEY}", "VAST_API_KEY meant"),
        (f"VAST_API_KEY: {KEY}", "line 2 of .* is not NAME=value"),
        (f"VAST_API_KEY {KEY}", "line 2 of .* is not NAME=value"),
        ("VAST_API_KEY", "line 2 of .* is not NAME=value"),
        (f"VAST_API_KEY={KEY} {KEY}", "VAST_API_KEY cannot be sent"),
    ],
)
def test_a_line_that_would_not_count_is_told(env_file, line, words):
    """A limit that does not hold costs money; no key is shown."""
    env_file.write_text(f"# mine\n{line}\n")
    with pytest.raises(CourseError, match=words) as caught:
        settings.read()
    assert KEY not in str(caught.value)


def test_other_programs_names_are_left_alone(env_file):
    """They may keep theirs in the same file."""
    env_file.write_text("OPENAI_API_KEY=x\nHF_HOME=/x\nexport WANDB_API_KEY='x'\nVLLM_API_KEY=\n\n")
    assert settings.read().vast_api_key is None


def test_files_that_windows_wrote_are_read(env_file):
    """A byte order mark and its line ends are no part of a name or a key; UTF-16 is told."""
    env_file.write_bytes(f"\ufeffVAST_API_KEY={KEY}\r\nBUDGET_USD=3\r\n".encode())
    config = settings.read()
    assert (config.vast_api_key.get_secret_value(), config.budget_usd) == (KEY, 3)
    env_file.write_text(f"VAST_API_KEY={KEY}\n", encoding="utf-16")
    with pytest.raises(CourseError, match="save it as UTF-8"):
        settings.read()


def test_example_file_explains_every_public_setting():
    """``.env.example`` and the settings do not drift apart."""
    text = (settings.PROJECT / ".env.example").read_text()
    named = {line.split("=")[0] for line in text.splitlines() if "=" in line and line[0] != "#"}
    fields = {name.upper() for name in settings.Settings.model_fields}
    assert named <= fields
    assert fields - named == {"RUNS_DIR", "REHEARSAL_HOME", "MODEL_CACHE"}  # where, not what
