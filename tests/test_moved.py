"""An old import says where the name went."""

import importlib
from importlib.util import find_spec

import pytest

from helpers import _moved, settings


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("import helpers.providers", "helpers.providers is now helpers.rent"),
        ("from helpers import providers", "helpers.providers is now helpers.rent"),
        ("from helpers.providers import vast", "helpers.providers is now helpers.rent"),
        ("import helpers.providers.vast", "helpers.providers is now helpers.rent"),
        ("from helpers import guard", "helpers.guard is now helpers.rent.guard"),
        ("from helpers.guard import rent", "helpers.guard is now helpers.rent.guard"),
        ("from helpers import plots_sizing", "helpers.plots_sizing is now helpers.plots"),
        ("from helpers.tools_schema import tool", "helpers.tools_schema is now helpers.tools"),
        ("from helpers import serving", "helpers.serving is now helpers.serve"),
    ],
)
def test_an_old_module_is_told_its_new_place(line, told):
    """In each way in which a reader's own script may have imported it."""
    with pytest.raises(ImportError) as caught:
        exec(line, {})
    assert str(caught.value) == told


def test_what_never_was_is_missing_as_ever():
    """A typing mistake gets Python's own words."""
    with pytest.raises(ImportError, match="cannot import name 'profiders'"):
        exec("from helpers import profiders", {})
    with pytest.raises(ModuleNotFoundError, match=r"No module named 'helpers\.profiders'"):
        importlib.import_module("helpers.profiders")


def test_every_new_place_exists_and_no_old_one():
    """Else the table would send a reader into the void."""
    for folder in _moved.FOLDERS:
        assert find_spec(folder)
    for old in _moved.MOVED:
        with pytest.raises(ImportError, match=f"{old} is now"):
            importlib.import_module(old)


def test_a_renamed_function_says_its_new_name():
    """``settings.load`` read as if it loaded a server."""
    for line in ("settings.load()", "from helpers.settings import load"):
        with pytest.raises(ImportError, match=r"helpers\.settings\.load is now .*\.read"):
            exec(line, {"settings": settings})
    with pytest.raises(AttributeError, match="no attribute 'laod'"):
        settings.laod()
