"""A door for each file of attacks, looked after between them."""

import pytest
from support.attacked import Attacked
from support.recorder import Recorder


@pytest.fixture(scope="module")
def door_of_the_file(tmp_path_factory):
    """One door, and the server that records what gets through."""
    with Recorder() as server:
        attacked = Attacked(tmp_path_factory.mktemp("door"), server).start()
        yield attacked
        attacked.door.stop()


@pytest.fixture
def attacked(door_of_the_file):
    """The door; after the test its worker lives, no place is held, and no secret is to be found."""
    door_of_the_file.before()
    yield door_of_the_file
    assert door_of_the_file.hurt() == []


@pytest.fixture
def own_door(tmp_path):
    """Start a door of this test alone, with text of its configuration replaced."""
    started = []

    def start(replace: dict[str, str] | None = None, **options) -> Attacked:
        server = Recorder()
        server.__enter__()
        attacked = Attacked(tmp_path / f"door{len(started)}", server, **options)
        started.append(attacked)
        filled = type(attacked.door)._config

        class Changed(type(attacked.door)):
            def _config(self, place):
                text = filled(self, place)
                for old, new in (replace or {}).items():
                    assert old in text, old
                    text = text.replace(old, new)
                return text

        attacked.door = Changed(**vars(attacked.door))
        return attacked.start()

    yield start
    for attacked in started:
        hurt = attacked.hurt()
        attacked.door.stop()
        attacked.server.__exit__()
        assert hurt == []
