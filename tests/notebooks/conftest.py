"""What several tests of the notebooks need: the reading site, built once."""

import os
import subprocess
import sys

import pytest

from helpers.settings import PROJECT


@pytest.fixture(scope="session")
def site(tmp_path_factory):
    """The site's folder, built as README says where no proxy leads anywhere."""
    folder = tmp_path_factory.mktemp("site")
    nowhere = {f"{kind}_proxy": "http://127.0.0.1:9" for kind in ("http", "https", "all")}
    done = subprocess.run(
        [sys.executable, "notebooks/publish/website.py", folder],
        cwd=PROJECT,
        env={**os.environ, **nowhere, "NO_COLOR": "1"},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return folder / "html"
