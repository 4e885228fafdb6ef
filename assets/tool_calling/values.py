"""The values of a question: how each kind of ``families.yaml`` is said, and how it is called."""

import datetime
import random
import re
import string
from pathlib import Path

import yaml

TEXT = Path(__file__).with_name("families.yaml").read_text()
SOURCE = yaml.safe_load(TEXT)
WORDS = SOURCE["words"]
# Ordinary words, for names and phrases that nobody has said before.
VOCABULARY = sorted(set(re.findall(r"\b[a-z]{4,9}\b", TEXT)))
SAYS = {"date": "Date as YYYY-MM-DD, or the words used", "time": "Time as HH:MM"}
NUMBER_WORDS = "zero one two three four five six seven eight nine ten eleven twelve".split()  # noqa: SIM905
SINGULAR = ("minute", "hour", "day", "week", "kilogram", "kilometre")
# How an amount is said, and how much of the tool's unit that is.
MEASURES = {
    "minutes": {"{} minutes": 1, "{} minute": 1, "{} min": 1,
                "{} hours": 60, "{} hour": 60, "{} h": 60},
    "seconds": {"{} seconds": 1, "{} s": 1, "{} minutes": 60, "{} minute": 60},
    "days": {"{} days": 1, "{} day": 1, "{} weeks": 7, "{} week": 7},
    "kg": {"{} kg": 1, "{} kilograms": 1, "{} kilogram": 1,
           "{} g": 0.001, "{} grams": 0.001, "{} tons": 1000},
    "km": {"{} km": 1, "{} kilometres": 1, "{} kilometre": 1, "{} m": 0.001, "{} metres": 0.001},
    "people": {"{} people": 1, "{} persons": 1, "{} guests": 1, "{} dozen people": 12},
}  # fmt: skip
SYLLABLES = "ba do ka li mo na pe ri sa to ve zu el an or in tha ber vin ros gar del mar".split()  # noqa: SIM905
MONTHS = "January February March April May June July August September October November December"
DAYS = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"]


def schema(rng: random.Random, kind: dict, optional: bool) -> dict:
    """JSON Schema of an argument of ``kind``."""
    made = _schema(rng, kind)
    says = kind.get("says") or SAYS.get(next(iter(kind)))
    if says and rng.random() < 0.7:
        made["description"] = says
    if optional and rng.random() < 0.3:  # how pydantic writes Optional
        whole = {"anyOf": [made, {"type": "null"}], "default": None}
        if "description" in made:
            whole["description"] = made.pop("description")
        return whole
    return made


def _schema(rng: random.Random, kind: dict) -> dict:
    if "enum" in kind:
        return {"type": "string", "enum": list(kind["enum"])}
    if "measure" in kind:
        unit = kind["measure"]
        return {
            "type": "number" if unit in ("kg", "km") else "integer",
            "description": f"In {unit}",
        }
    if "items" in kind or "object" in kind:
        one = _object_schema(rng, kind.get("items") or kind["object"])
        return {"type": "array", "items": one} if "items" in kind else one
    for name in ("boolean", "integer", "number"):
        if name in kind:
            return {"type": name}
    for name, inner in (("list", "string"), ("numbers", "number")):
        if name in kind:
            return {"type": "array", "items": {"type": inner}}
    return {"type": "string"}


def _object_schema(rng: random.Random, fields: dict) -> dict:
    properties = {
        rng.choice(key.split("|")): {"type": "integer" if isinstance(v, list) else "string"}
        for key, v in fields.items()
    }
    return {"type": "object", "properties": properties, "required": list(properties)}


def value(rng: random.Random, kind: dict, names: list[str] = ()) -> tuple[str, object]:
    """How a value is said in the question, and how it stands in the call."""
    for name, make in SIMPLE.items():
        if name in kind:
            return make(rng, kind[name])
    return _fields(rng, kind, names)


def _copied(rng: random.Random, row: str) -> tuple[str, str]:
    word = _word(rng, row)
    return word, word


def _number(rng: random.Random, limits: list) -> tuple[str, float]:
    if rng.random() < 0.5:
        chosen = rng.randint(*limits)
    else:
        chosen = round(rng.uniform(*limits), rng.choice([1, 2]))
    return str(chosen), chosen


def _choice(rng: random.Random, choices: dict | list) -> tuple[str, str]:
    chosen = rng.choice(list(choices))
    if isinstance(choices, dict):
        return rng.choice([*choices[chosen], chosen]), chosen
    return chosen.replace("_", " "), chosen


def _truth(rng: random.Random, said: list) -> tuple[str, bool]:
    chosen = rng.random() < 0.5
    return said[0 if chosen else 1], chosen


def _time(rng: random.Random, _: object) -> tuple[str, str]:
    hour, minute = rng.randint(0, 23), rng.choice([0, 0, 15, 30, 45, rng.randint(1, 59)])
    said = [f"{hour:02}:{minute:02}", f"{hour}:{minute:02}"]
    if minute == 0:
        half = "am" if hour < 12 else "pm"
        said += [f"{hour % 12 or 12} {half}", f"{hour % 12 or 12}{half}", f"{hour} o'clock"]
        said += ["noon"] if hour == 12 else []
    else:
        said += [f"{hour % 12 or 12}:{minute:02} {'am' if hour < 12 else 'pm'}"]
    return rng.choice(said), f"{hour:02}:{minute:02}"


def _list(rng: random.Random, row: str) -> tuple[str, list]:
    values = _different(rng, row, rng.randint(1, 4))
    return enumerate_words(values), values


def _numbers(rng: random.Random, limits: list) -> tuple[str, list]:
    values = [rng.randint(*limits) for _ in range(rng.randint(2, 6))]
    return enumerate_words([str(v) for v in values]), values


def _fields(rng: random.Random, kind: dict, names: list[str]) -> tuple[str, object]:
    fields = kind.get("items") or kind["object"]
    keys = list(names) or [key.split("|")[0] for key in fields]
    if "object" in kind:
        values = [_field(rng, v) for v in fields.values()]
        return kind["said"].format(*values), dict(zip(keys, values, strict=True))
    things = _different(rng, next(iter(fields.values())), rng.randint(1, 3))
    amounts = [_field(rng, list(fields.values())[1]) for _ in things]
    unit = rng.choice([" ", " ", " x ", " of the "])
    said = enumerate_words([f"{n}{unit}{thing}" for n, thing in zip(amounts, things, strict=True)])
    return said, [dict(zip(keys, pair, strict=True)) for pair in zip(things, amounts, strict=True)]


def _field(rng: random.Random, kind: list | str) -> object:
    return rng.randint(*kind) if isinstance(kind, list) else _word(rng, kind)


def _word(rng: random.Random, row: str) -> str:
    luck = rng.random()
    if luck < 0.04:  # so that a value is copied, not guessed
        row = rng.choice(list(WORDS))
    word = rng.choice(WORDS[row])
    return word if luck < 0.5 else invent(rng, word)


def _different(rng: random.Random, row: str, count: int) -> list[str]:
    return list(dict.fromkeys(_word(rng, row) for _ in range(count)))


def invent(rng: random.Random, like: str) -> str:
    """A value of the shape of ``like`` that nobody has seen: it can only be copied.

    ``12 Mill Lane`` becomes ``95 Gadel Winter``, ``B-AB 1234`` ``W-QX 7015``.
    """

    def other(match: re.Match) -> str:
        piece = match[0]
        if piece.isdigit():
            return str(rng.randint(10 ** (len(piece) - 1), 10 ** len(piece) - 1))
        if piece.isupper():
            return "".join(rng.choices(string.ascii_uppercase, k=len(piece)))
        if piece.islower() and len(piece) < 4:
            return piece
        made_up = rng.random() < (0.15 if piece.islower() else 0.6)
        word = "".join(rng.choices(SYLLABLES, k=rng.randint(2, 3))) if made_up else ""
        word = word or rng.choice(VOCABULARY)
        return word if piece.islower() else word.title()

    return re.sub(r"\d+|[A-Za-z]+", other, like)


def _integer(rng: random.Random, bounds: list[int]) -> tuple[str, int]:
    luck = rng.random()
    chosen = rng.randint(*bounds) if luck < 0.85 else rng.randint(1, 10 ** rng.randint(1, 6))
    if 0 <= chosen <= 12 and rng.random() < 0.4:
        return NUMBER_WORDS[chosen], chosen
    return (f"{chosen:,}" if luck < 0.1 else str(chosen)), chosen


def _measure(rng: random.Random, unit: str) -> tuple[str, float]:
    """An amount said in the tool's unit or in another: "two hours" are 120 minutes."""
    ways = MEASURES[unit]
    own = [way for way in ways if ways[way] == 1]
    way = rng.choice(own) if rng.random() < 0.6 else rng.choice(list(ways))
    factor = ways[way]
    if way.endswith(SINGULAR) or "dozen" in way:
        said = "an" if way.endswith("hour") else "a"
        return way.format(rng.choice([said, "one", "1"])), factor
    if factor < 1:
        round_ones = rng.randrange(50, 1000, 50), rng.randint(2, 99) * 100
        amount = rng.choice([*round_ones, rng.randint(5, 5000)])
    elif factor > 1:
        amount = rng.randint(2, 12)
    elif unit in ("kg", "km") and rng.random() < 0.5:
        amount = round(rng.uniform(0.2, 60), 1)
    else:
        amount = rng.randint(2, 90)
    value = round(amount * factor, 3)
    small = amount in range(13) and rng.random() < 0.4
    written = NUMBER_WORDS[int(amount)] if small else f"{amount:,}"
    return way.format(written), int(value) if value == int(value) else value


def _date(rng: random.Random) -> tuple[str, str]:
    if rng.random() < 0.4:
        said = rng.choice(["today", "tomorrow", *DAYS, "next " + rng.choice(DAYS)])
        return said, said
    day = datetime.date(2026, 1, 1) + datetime.timedelta(days=rng.randrange(900))
    month = MONTHS.split()[day.month - 1]
    written = [
        day.isoformat(),
        f"{day.day} {month} {day.year}",
        f"{month} {day.day}, {day.year}",
        f"{day.day:02}.{day.month:02}.{day.year}",
        f"the {_ordinal(day.day)} of {month} {day.year}",
        f"{month} {_ordinal(day.day)}, {day.year}",
    ]
    said = rng.choice(written)
    return said, day.isoformat()


def _ordinal(number: int) -> str:
    ending = {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")
    return f"{number}{'th' if 10 < number < 14 else ending}"


def _expression(rng: random.Random) -> tuple[str, str]:
    a, b, c = (
        rng.choice([rng.randint(2, 99), rng.randint(100, 5000), round(rng.uniform(1, 60), 1)])
        for _ in range(3)
    )
    one = [
        (f"{a} times {b}", f"{a} * {b}"),
        (f"{a} plus {b}", f"{a} + {b}"),
        (f"{a} minus {b}", f"{a} - {b}"),
        (f"{a} divided by {b}", f"{a} / {b}"),
        (f"{a} * {b}", f"{a} * {b}"),
        (f"{a} + {b}", f"{a} + {b}"),
        (f"{a} x {b}", f"{a} * {b}"),
        (f"{a} / {b}", f"{a} / {b}"),
        (f"({a} + {b}) * {c}", f"({a} + {b}) * {c}"),
        (f"{a} + {b} * {c}", f"{a} + {b} * {c}"),
        (f"{a} times {b} plus {c}", f"{a} * {b} + {c}"),
        (f"{a} plus {b} minus {c}", f"{a} + {b} - {c}"),
        (f"{a} times the sum of {b} and {c}", f"{a} * ({b} + {c})"),
        (f"{a} squared", f"{a} ** 2"),
        (f"({a} - {b}) / {c}", f"({a} - {b}) / {c}"),
        (f"half of {b}", f"{b} / 2"),
    ]
    return rng.choice(one)


def enumerate_words(parts: list[str]) -> str:
    """``a, b and c``."""
    return parts[0] if len(parts) == 1 else ", ".join(parts[:-1]) + " and " + parts[-1]


# Kinds of one value each, in the order in which they are looked for.
SIMPLE = {
    "words": _copied,
    "integer": _integer,
    "measure": _measure,
    "number": _number,
    "enum": _choice,
    "boolean": _truth,
    "date": lambda rng, _: _date(rng),
    "time": _time,
    "expression": lambda rng, _: _expression(rng),
    "list": _list,
    "numbers": _numbers,
}
