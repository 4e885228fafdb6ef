"""Synthetic conversations with tools, from ``families.yaml``: what the adapter is trained on.

One ``Sheet`` is a set of tools and several separate conversations that may use them, so that
training reads the tools once for all of them.

    python data.py            print a few of them
"""

import itertools
import json
import random
import re
from dataclasses import dataclass

from values import SOURCE, VOCABULARY, WORDS, enumerate_words, invent, schema, value

FAMILIES, CHAT, PARTS = SOURCE["families"], SOURCE["chat"], SOURCE["parts"]
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
# Arguments that a tool may have besides, and that no question gives: most are never asked for.
NOT_ASKED_FOR = [
    row for row in PARTS["arguments"] if not {"words", "object", "items"} & set(row[1])
]
SENTENCES = {"notes", "rules", "tasks", "phrases"}
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
    "Quick question: ",
    "My boss asks me to do this: ",
    "I am in a hurry. ",
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
# Words that go with a value, so that a question without the value can leave them out as well.
BEFORE = (
    "in|to|for|at|on|of|from|with|by|into|and|the|a|about|near|than|under|over|named|called|titled|"
    "saying|using|number|reference|code|text|title|note|reason|between|address|until|because|this"
)
AFTER = "degrees|percent|minutes|hours|days|nights|people|kg|grams|ml|dollars|times|cm|pixels|%"
TROUBLES = ["not found", "no connection", "permission denied", "invalid value", "timed out"]


@dataclass
class Sheet:
    """``tools`` in OpenAI's form, and conversations: lists of OpenAI messages, the assistant's
    among them. ``kinds`` says what each conversation asks for: ``call``, ``two`` or ``none``."""

    tools: list[dict]
    conversations: list[list[dict]]
    kinds: list[str]


def sheet(
    rng: random.Random,
    families: list[dict],
    conversations: int = 8,
    composed: float = 0.45,
    sizes: random.Random | None = None,
) -> Sheet:
    """A random set of one to eight tools and conversations about them.

    The tools are of ``families``; a share ``composed`` is put together at random. ``sizes`` draws
    their number, by default ``rng``.
    """
    size = (sizes or rng).choices(range(1, 9), [8, 10, 14, 16, 14, 12, 10, 16])[0]
    chosen: list[dict] = []
    while len(chosen) < size:
        known = [family for family in chosen if family in families]
        if known and rng.random() < 0.3:  # from the same corner: harder to tell apart
            near = families.index(rng.choice(known)) + rng.randint(-4, 4)
            family = families[near % len(families)]
        elif rng.random() < composed:
            family = _put_together(rng)
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


def _put_together(rng: random.Random) -> dict:
    """A family that nobody wrote: a verb, a noun and some of the ``parts``."""
    verb, noun = rng.choice(PARTS["verbs"]), rng.choice(PARTS["nouns"])
    drawn = rng.sample(PARTS["arguments"], rng.choices(range(1, 7), [10, 25, 25, 20, 12, 8])[0])
    args, ways, taken = {}, {}, set()
    for names, kind, asks in drawn:
        free = [name for name in names.split("|") if name not in taken]
        if names.split("|")[0] in free and asks[0].count("{") == 1:
            taken |= set(free)
            optional = "?" if args and rng.random() < 0.4 else ""
            args["|".join(free) + optional] = kind
            ways[free[0]] = (asks, bool(optional))
    names = [f"{verb}_{noun}", f"{noun}_{verb}", f"{verb}_{noun}s", f"{verb}_one_{noun}"]
    says = [f"{verb.title()} a {noun}.", f"Use this to {verb} the {noun}."]
    asked = []
    for _ in range(4):
        said = [
            rng.choice(a) for a, optional in ways.values() if not optional or rng.random() < 0.5
        ]
        rng.shuffle(said)
        opening = rng.choice([f"{verb} the {noun}", f"{verb} a {noun}", f"{verb} my {noun}"])
        asked.append(" ".join([opening, *said]))
    return {"names": names, "says": says, "task": f"{verb} a {noun}", "args": args, "asks": asked}


class _Tool:
    """One family under one of its names."""

    def __init__(self, rng: random.Random, family: dict) -> None:
        self.family, self.rng = family, rng
        self.name = _style(rng, _renamed(rng, rng.choice(family["names"])))
        self.arguments = {}  # name in the questions -> (name in the schema, kind)
        properties, required = {}, []
        arguments = list(family["args"].items())
        if rng.random() < 0.3:
            rng.shuffle(arguments)
        for key, kind in arguments:
            names = key.rstrip("?").split("|")
            name = plain = rng.choice(names)
            if (luck := rng.random()) < 0.2:
                name = _renamed(rng, plain) if luck < 0.15 else rng.choice(VOCABULARY)
                name = plain if name in properties else name
            self.arguments[names[0]] = (name, kind)
            properties[name] = schema(rng, kind, key.endswith("?"))
            if name != plain or rng.random() < 0.3:  # a name that says nothing needs a description
                about = rng.choice(names).replace("_", " ")
                properties[name].setdefault("description", rng.choice(["The ", ""]) + about)
            if not key.endswith("?"):
                required.append(name)
        for names, kind, _ in rng.sample(NOT_ASKED_FOR, rng.choice([0, 0, 1, 1, 2])):
            name = rng.choice(names.split("|"))
            properties.setdefault(name, schema(rng, kind, optional=True))
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
        text, [call] = self._asked(self.rng.choice(self.family["asks"]))
        return text, call

    def ask_again(self) -> tuple[str, list[dict]] | None:
        """One question that needs this tool twice or more: "how far is it to Oslo and to Lima"."""
        several = [
            (ask, slot)
            for ask in self.family["asks"]
            for slot in re.findall(r"{(\w+)}", ask)
            if self.arguments[slot][1].get("words", "notes") not in SENTENCES
        ]
        return self._asked(*self.rng.choice(several)) if several else None

    def ask_too_little(self) -> tuple[str, list[str]] | None:
        """A question that leaves out what the tool needs, and the names of what is missing."""
        needed = self.schema["function"]["parameters"]["required"]
        template = self.rng.choice(self.family["asks"])
        slots = [s for s in re.findall(r"{(\w+)}", template) if self.arguments[s][0] in needed]
        if not slots:
            return None
        slot = self.rng.choice(slots)
        cut = rf"(?:\b(?:{BEFORE})\s+){{0,3}}'?{{{slot}}}'?(?:\s*(?:{AFTER})\b)?"
        template = re.sub(cut, "", template)
        text, [call] = self._asked(template)
        missing = [name for name in needed if name not in call["arguments"]]
        text = re.sub(r"\s+([,.?:])|^[,:]\s*", r"\1", " ".join(text.split()))
        return (text, missing) if len(text.split()) > 1 else None

    def _asked(self, template: str, several: str = "") -> tuple[str, list[dict]]:
        """Fill ``template``; the slot ``several`` with two or three values, a call for each."""
        said, values, each = {}, {}, [None]
        for slot in re.findall(r"{(\w+)}", template):
            name, kind = self.arguments[slot]
            if slot == several:
                count = self.rng.choice([2, 2, 2, 3])
                each = list(dict.fromkeys(value(self.rng, kind)[1] for _ in range(count)))
                said[slot], values[name] = enumerate_words(each), None
            else:
                said[slot], values[name] = value(self.rng, kind, self._names(name))
        order = self.schema["function"]["parameters"]["properties"]
        calls = []
        for one in each:
            filled = values | ({self.arguments[several][0]: one} if several else {})
            arguments = {name: filled[name] for name in order if name in filled}
            calls.append({"name": self.name, "arguments": arguments})
        return template.format(**said), calls

    def _names(self, name: str) -> list[str]:
        schema = self.schema["function"]["parameters"]["properties"][name]
        schema = schema.get("anyOf", [schema])[0]
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
            row = WORDS[self.rng.choice(["songs", "books", "cars", "topics"])]
            found = [invent(self.rng, word) for word in self.rng.sample(row, 2)]
            return json.dumps({"results": found}), f"I found {found[0]} and {found[1]}."
        done = ['{"ok": true}', '{"status": "done"}', "done", '{"success": true}']
        return self.rng.choice(done), "Done."


def _conversation(rng: random.Random, tools: list[_Tool], families: list[dict]) -> tuple[str, list]:
    luck = rng.random()
    if luck < 0.31:
        return "none", _without(rng, tools, families)
    if luck < 0.55:
        again = rng.choice(tools).ask_again() if rng.random() < 0.5 else None
        if again and len(again[1]) > 1:
            return "two", [_user(_dress(rng, again[0])), _calls(again[1])]
        asked = [rng.choice(tools).ask() for _ in range(rng.choice([2, 2, 2, 2, 2, 3]))]
        if all(one[1] != two[1] for one, two in itertools.pairwise(asked)):
            joint = rng.choice([" and ", " and then ", ", and also ", ". Also, ", "; ", " and "])
            text = _dress(rng, joint.join(text for text, _ in asked))
            return "two", [_user(text), _calls([call for _, call in asked])]
    tool = rng.choice(tools)
    text, call = tool.ask()
    messages = [_user(_dress(rng, text)), _calls([call])]
    if rng.random() < 0.15:
        result, answer = tool.answer(call)
        messages += [{"role": "tool", "content": result}, _says(answer)]
        if rng.random() < 0.4:
            text, call = rng.choice(tools).ask()
            messages += [_user(_dress(rng, text)), _calls([call])]
    return "call", messages


def _without(rng: random.Random, tools: list[_Tool], families: list[dict]) -> list[dict]:
    """A question that no tool here answers, or that lacks what the tool needs."""
    luck = rng.random()
    if luck < 0.38 and not any(tool.family["task"] in ANSWERS_ANYTHING for tool in tools):
        family = _put_together(rng) if rng.random() < 0.3 else rng.choice(families)
        if not any(_alike(family, tool.family) for tool in tools):
            text, _ = _Tool(rng, family).ask()
            task = family["task"]
            answer = rng.choice([f"I have no tool to {task}.", f"I am sorry, I cannot {task}."])
            return [_user(_dress(rng, text)), _says(answer)]
    if luck < 0.68:
        tool = rng.choice(tools)
        missing = tool.schema["function"]["parameters"]["required"]
        text = rng.choice(WISHES).format(tool.family["task"]) + rng.choice(SUFFIXES)
        if rng.random() < 0.6 and (little := tool.ask_too_little()):
            text, missing = _dress(rng, little[0]), little[1]
        needs = " and ".join(name.replace("_", " ") for name in missing)
        return [_user(text), _says(f"Please tell me the {needs}.")]
    question, answer = rng.choice(CHAT)
    if rng.random() < 0.4:
        question, answer = rng.choice(SOURCE["chat_about"])
        [row] = re.findall(r"{(\w+)}", question)
        about = {row: value(rng, {"words": row})[0]}
        question, answer = question.format(**about), answer.format(**about)
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


def _renamed(rng: random.Random, name: str) -> str:
    """A name that has not been learnt by heart, so that it must be read in the list of tools."""
    luck = rng.random()
    if luck < 0.75:
        return name
    if luck < 0.9:
        word = rng.choice([*VOCABULARY, "get", "do", "my", "the", "api", "new", "run", "v2"])
        return rng.choice([f"{name}_{word}", f"{word}_{name}"])
    if luck < 0.95:
        return "_".join(rng.sample(VOCABULARY, 2))
    return invent(rng, name)


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
