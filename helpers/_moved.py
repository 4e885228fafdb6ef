"""An old import says where the name went. To be removed with the release after 0.2.

``helpers`` was one flat folder once; now it has a folder for each stage of the course.
"""

from collections.abc import Callable
from importlib.util import find_spec

# Each folder, and the modules of the flat folder that went into it.
FOLDERS = {
    "helpers.choose": "models prices sizing",
    "helpers.rent": "clouds deadman guard keys providers sky_worker ssh tunnel",
    "helpers.serve": "fleet router serving",
    "helpers.load": "arrivals generator live metrics play shards workload",
    "helpers.load.client": "eventloop general http1 stream wire",
    "helpers.measure": "capacity export noise summary",
    "helpers.plots": "picture plots_fleet plots_sizing plots_tools",
    "helpers.tools": "tools_ask tools_evaluate tools_load tools_loop tools_puppet tools_questions"
    " tools_run tools_schema tools_talk tools_wire",
}
MOVED = {f"helpers.{name}": folder for folder, names in FOLDERS.items() for name in names.split()}


class Finder:
    """First in ``sys.meta_path``: a folder that an update left behind must not hide the answer."""

    @staticmethod
    def find_spec(name: str, *_: object) -> None:
        """Find nothing.

        Raises:
            ImportError: the module has moved, and where to.
        """
        if folder := MOVED.get(name):
            same = f"{folder}.{name.rpartition('.')[2]}"
            raise ImportError(f"{name} is now {same if find_spec(same) else folder}")


def renamed(module: str, names: dict[str, str]) -> Callable[[str], object]:
    """Make the ``__getattr__`` of a module in which names have changed.

    Args:
        module: its ``__name__``.
        names: old name -> new name.

    Returns:
        A function that raises ImportError for an old name, saying the new one, and AttributeError
        for any other.
    """

    def missing(name: str) -> object:
        if name in names:
            raise ImportError(f"{module}.{name} is now {module}.{names[name]}")
        raise AttributeError(f"module {module!r} has no attribute {name!r}")

    return missing
