"""Synthetic conversations with tools, from ``families.yaml``: what the adapter is trained on.

One ``Sheet`` is a set of tools and several separate conversations that may use them, so that
training reads the tools once for all of them.

    python data.py            print a few of them
"""

import json
import random
import re
from dataclasses import dataclass

from values import SOURCE, WORDS, enumerate_words, schema, value

FAMILIES, CHAT = SOURCE["families"], SOURCE["chat"]
# Every ninth family is never trained on: its questions tell how well unknown tools are used.
HELD_OUT = [family for i, family in enumerate(FAMILIES) if i % 9 == 4]
TRAINED = [family for i, family in enumerate(FAMILIES) if i % 9 != 4]
# Tools that could stand in for each other: never two of a row in one set.
ALIKE = [
    {"do arithmetic", "add numbers", "compute averages", "compute percentages", "split bills",
     "compute areas", "compute loan payments", "compute a body mass index"},
    {"search the web", "get the news", "look up articles", "look up facts of countries"},
    {"manage tasks", "save notes", "set alarms", "run timers", "schedule medicines"},
    {"search recipes", "show recipes"}, {"search the web", "search books"},
    {"plan routes", "measure distances", "search trains", "look up departures"},
    {"send text messages", "make calls"}, {"look up words", "translate", "look up articles"},
    {"change the heating", "control the lights", "move the blinds"},
    {"count days", "count days between dates"}, {"search the web", "compare prices"},
    {"find star", "find stars", "look up planets"}, {"play music", "make playlists"},
]  # fmt: skip
ANSWERS_ANYTHING = {"search the web", "look up articles", "get the news"}
PREFIXES = [
    *[""] * 5,
    "Please ",
    "Could you ",
    "Hey, ",
    "Hi! ",
    "Can you ",
    "Now ",
    "I need this: ",
]
SUFFIXES = ["", "", "", "", ".", ".", "?", "!", " please", ", thanks", ". Thank you!"]
QUESTIONS = ("what", "how", "who", "when", "I ", "is ", "why", "which")
SYSTEMS = [
    "You are a helpful assistant.",
    "Today is Tuesday, 2026-11-24.",
    "You help customers. Be brief.",
    "Use the tools when they help. Otherwise answer in words.",
]
WISHES = [
    "I want to {}",
    "can you {} for me",
    "help me to {}",
    "{} please",
    "I would like you to {}",
    "{}",
]
TROUBLES = ["not found", "no connection", "permission denied", "invalid value", "timed out"]


@dataclass
class Sheet:
    """``tools`` in OpenAI's form, and conversations: lists of OpenAI messages, the assistant's
    among them. ``kinds`` says what each conversation asks for: ``call``, ``two`` or ``none``."""

    tools: list[dict]
    conversations: list[list[dict]]
    kinds: list[str]


def sheet(rng: random.Random, families: list[dict], conversations: int = 8) -> Sheet:
    """A random set of one to eight tools of ``families`` and conversations about them."""
    size = rng.choices(range(1, 9), [10, 14, 18, 18, 14, 10, 8, 8])[0]
    chosen: list[dict] = []
    while len(chosen) < size:
        if chosen and rng.random() < 0.3:  # from the same corner: harder to tell apart
            near = families.index(rng.choice(chosen)) + rng.randint(-4, 4)
            family = families[near % len(families)]
        else:
            family = rng.choice(families)
        if not any(_alike(family, other) for other in chosen):
            chosen.append(family)
    tools = [_Tool(rng, family) for family in chosen]
    made = [_conversation(rng, tools, families) for _ in range(conversations)]
    if rng.random() < 0.3:
        system = {"role": "system", "content": rng.choice(SYSTEMS)}
        made = [(kind, [system, *messages]) for kind, messages in made]
    return Sheet([tool.schema for tool in tools], [m for _, m in made], [kind for kind, _ in made])


def _alike(one: dict, other: dict) -> bool:
    return one is other or any({one["task"], other["task"]} <= row for row in ALIKE)


class _Tool:
    """One family under one of its names."""

    def __init__(self, rng: random.Random, family: dict) -> None:
        self.family, self.rng = family, rng
        self.name = _style(rng, rng.choice(family["names"]))
        self.arguments = {}  # name in the questions -> (name in the schema, kind)
        properties, required = {}, []
        arguments = list(family["args"].items())
        if rng.random() < 0.3:
            rng.shuffle(arguments)
        for key, kind in arguments:
            names = key.rstrip("?").split("|")
            name = rng.choice(names)
            self.arguments[names[0]] = (name, kind)
            properties[name] = schema(rng, kind, key.endswith("?"))
            if not key.endswith("?"):
                required.append(name)
        self.schema = {
            "type": "function",
            "function": {
                "name": self.name,
                "description": rng.choice(family["says"]),
                "parameters": {"type": "object", "properties": properties, "required": required},
            },
        }

    def ask(self) -> tuple[str, dict]:
        """A question that needs this tool, and the call it needs."""
        template = self.rng.choice(self.family["asks"])
        said, values = {}, {}
        for slot in re.findall(r"{(\w+)}", template):
            name, kind = self.arguments[slot]
            said[slot], values[name] = value(self.rng, kind, self._names(name))
        order = self.schema["function"]["parameters"]["properties"]
        ordered = {name: values[name] for name in order if name in values}
        return template.format(**said), {"name": self.name, "arguments": ordered}

    def ask_twice(self) -> tuple[str, list[dict]] | None:
        """One question that needs this tool twice: "how far is it to Oslo and Lima"."""
        slots = {ask: re.findall(r"{(\w+)}", ask) for ask in self.family["asks"]}
        single = [
            (ask, slot)
            for ask, [slot, *more] in slots.items()
            if not more and "words" in self.arguments[slot][1]
        ]
        if not single:
            return None
        template, slot = self.rng.choice(single)
        name, kind = self.arguments[slot]
        values = list(dict.fromkeys(value(self.rng, kind)[1] for _ in range(2)))
        calls = [{"name": self.name, "arguments": {name: value}} for value in values]
        return template.format(**{slot: enumerate_words(values)}), calls

    def _names(self, name: str) -> list[str]:
        schema = self.schema["function"]["parameters"]["properties"][name]
        return list(schema.get("items", schema).get("properties", {}))

    def answer(self, call: dict) -> tuple[str, str]:
        """A result as the tool would give it, and the answer that the assistant makes of it."""
        if "result" in self.family and self.rng.random() < 0.8:
            [(key, kind)] = self.family["result"].items()
            result = {
                key: value(self.rng, {"integer": kind} if isinstance(kind, list) else kind)[1]
            }
            return json.dumps(result), self.family["answer"].format(**result)
        luck = self.rng.random()
        if luck < 0.25:
            reason = self.rng.choice(TROUBLES)
            return json.dumps({"error": reason}), f"That did not work: {reason}."
        if luck < 0.55:
            found = self.rng.sample(WORDS[self.rng.choice(["songs", "books", "cars", "topics"])], 2)
            return json.dumps({"results": found}), f"I found {found[0]} and {found[1]}."
        done = ['{"ok": true}', '{"status": "done"}', "done", '{"success": true}']
        return self.rng.choice(done), "Done."


def _conversation(rng: random.Random, tools: list[_Tool], families: list[dict]) -> tuple[str, list]:
    luck = rng.random()
    if luck < 0.33:
        return "none", _without(rng, tools, families)
    if luck < 0.45:
        first, second = rng.choice(tools), rng.choice(tools)
        if (twice := first.ask_twice()) and rng.random() < 0.5 and len(twice[1]) == 2:
            return "two", [_user(_dress(rng, twice[0])), _calls(twice[1])]
        asked = [first.ask(), second.ask()]
        if asked[0][1] != asked[1][1]:
            joint = rng.choice([" and ", " and then ", ", and also ", ". Also, ", "; ", " and "])
            text = _dress(rng, asked[0][0] + joint + asked[1][0])
            return "two", [_user(text), _calls([call for _, call in asked])]
    tool = rng.choice(tools)
    text, call = tool.ask()
    messages = [_user(_dress(rng, text)), _calls([call])]
    if rng.random() < 0.22:
        result, answer = tool.answer(call)
        messages += [{"role": "tool", "content": result}, _says(answer)]
        if rng.random() < 0.4:
            text, call = rng.choice(tools).ask()
            messages += [_user(_dress(rng, text)), _calls([call])]
    return "call", messages


def _without(rng: random.Random, tools: list[_Tool], families: list[dict]) -> list[dict]:
    """A question that no tool here answers, or that lacks what the tool needs."""
    luck = rng.random()
    if luck < 0.42 and not any(tool.family["task"] in ANSWERS_ANYTHING for tool in tools):
        family = rng.choice(families)
        if not any(_alike(family, tool.family) for tool in tools):
            text, _ = _Tool(rng, family).ask()
            task = family["task"]
            answer = rng.choice([f"I have no tool to {task}.", f"I am sorry, I cannot {task}."])
            return [_user(_dress(rng, text)), _says(answer)]
    if luck < 0.62:
        tool = rng.choice(tools)
        required = tool.schema["function"]["parameters"]["required"]
        wish = rng.choice(WISHES).format(tool.family["task"])
        needs = " and ".join(name.replace("_", " ") for name in required)
        return [_user(wish + rng.choice(SUFFIXES)), _says(f"Please tell me the {needs}.")]
    question, answer = rng.choice(CHAT)
    return [_user(_dress(rng, question)), _says(answer)]


def _user(text: str) -> dict:
    return {"role": "user", "content": text}


def _says(text: str) -> dict:
    return {"role": "assistant", "content": text}


def _calls(calls: list[dict]) -> dict:
    wrapped = [{"type": "function", "function": call} for call in calls]
    return {"role": "assistant", "content": "", "tool_calls": wrapped}


def _dress(rng: random.Random, text: str) -> str:
    """The same question with other manners: a greeting, a capital, a full stop."""
    prefix = rng.choice(PREFIXES)
    if text.startswith(QUESTIONS) and prefix not in ("", "Hey, ", "Hi! "):
        prefix = ""
    text = prefix + text + rng.choice(SUFFIXES)
    return text if rng.random() < 0.25 else text[0].upper() + text[1:]


def _style(rng: random.Random, name: str) -> str:
    luck = rng.random()
    if luck < 0.8:
        return name
    parts = name.split("_")
    return parts[0] + "".join(p.title() for p in parts[1:]) if luck < 0.93 else "-".join(parts)


if __name__ == "__main__":
    random_numbers = random.Random(0)
    for _ in range(3):
        made = sheet(random_numbers, TRAINED)
        print(json.dumps(made.tools))
        for kind, messages in zip(made.kinds, made.conversations, strict=True):
            print(f"  {kind:5}", json.dumps(messages))
