"""The load generator's process: what it asks of the system first."""

import resource

import pytest

from helpers.load import generator


@pytest.mark.parametrize(("says", "allows"), [(4096, 4096), (resource.RLIM_INFINITY, 24576)])
def test_it_opens_as_many_files_as_the_system_allows(monkeypatch, says, allows):
    """macOS says that there is no limit, and refuses to go without one."""
    set_to = []

    def setrlimit(what, limits):
        if not 0 <= limits[0] <= allows:
            raise ValueError("current limit exceeds maximum limit")
        set_to.append(limits)

    monkeypatch.setattr(resource, "getrlimit", lambda what: (256, says))
    monkeypatch.setattr(resource, "setrlimit", setrlimit)
    generator._raise_file_limit()
    assert set_to == [(allows, says)]
