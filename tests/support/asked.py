"""A question of the evaluation, with two tools to choose from."""

from helpers import tools

SHIP = {
    "type": "function",
    "function": {
        "name": "ship",
        "description": "",
        "parameters": {
            "type": "object",
            "properties": {
                "to": {"type": "string"},
                "kg": {"type": "number"},
                "express": {"type": "boolean", "default": False},
                "tags": {"type": "array", "items": {"type": "string"}},
                "box": {"type": "object"},
            },
            "required": ["to"],
        },
    },
}
CANCEL = {"type": "function", "function": {"name": "cancel", "parameters": {"properties": {}}}}


def question(*calls, kind="k"):
    asked = [{"role": "user", "content": "?"}]
    return tools.Question(kind=kind, messages=asked, tools=[SHIP, CANCEL], calls=list(calls))
