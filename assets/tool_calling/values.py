"""The values of a question: how each kind of ``families.yaml`` is said, and how it is called."""

import datetime
import random
from pathlib import Path

import yaml

SOURCE = yaml.safe_load(Path(__file__).with_name("families.yaml").read_text())
WORDS = SOURCE["words"]
SAYS = {"date": "Date as YYYY-MM-DD, or the words used", "time": "Time as HH:MM"}
SYLLABLES = "ba do ka li mo na pe ri sa to ve zu el an or in tha ber vin ros gar del mar".split()  # noqa: SIM905
MONTHS = "January February March April May June July August September October November December"
DAYS = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"]


def schema(rng: random.Random, kind: dict, optional: bool) -> dict:
    """JSON Schema of an argument of ``kind``."""
    made: dict = {}
    if "enum" in kind:
        made = {"type": "string", "enum": list(kind["enum"])}
    elif "boolean" in kind:
        made = {"type": "boolean"}
    elif "integer" in kind or "number" in kind:
        made = {"type": "integer" if "integer" in kind else "number"}
    elif "list" in kind:
        made = {"type": "array", "items": {"type": "string"}}
    elif "numbers" in kind:
        made = {"type": "array", "items": {"type": "number"}}
    elif "items" in kind or "object" in kind:
        fields = kind.get("items") or kind["object"]
        properties = {
            rng.choice(key.split("|")): {"type": "integer" if isinstance(v, list) else "string"}
            for key, v in fields.items()
        }
        made = {"type": "object", "properties": properties, "required": list(properties)}
        if "items" in kind:
            made = {"type": "array", "items": made}
    else:
        made = {"type": "string"}
    says = kind.get("says") or SAYS.get(next(iter(kind)))
    if says and rng.random() < 0.7:
        made["description"] = says
    if optional and rng.random() < 0.3:  # how pydantic writes Optional
        whole = {"anyOf": [made, {"type": "null"}], "default": None}
        if "description" in made:
            whole["description"] = made.pop("description")
        return whole
    return made


def value(rng: random.Random, kind: dict, names: list[str] = ()) -> tuple[str, object]:
    """How a value is said in the question, and how it stands in the call."""
    if "words" in kind:
        luck = rng.random()
        word = rng.choice(WORDS[kind["words"]])
        if luck < 0.12:  # so that a value is copied, not guessed
            word = rng.choice(WORDS[rng.choice(list(WORDS))])
        elif luck < 0.25:
            word = "".join(rng.choices(SYLLABLES, k=rng.randint(2, 3)))
            word = word.title() if rng.random() < 0.7 else word
        return word, word
    if "integer" in kind:
        chosen = rng.randint(*kind["integer"])
        return (f"{chosen:,}" if rng.random() < 0.2 else str(chosen)), chosen
    if "number" in kind:
        low, high = kind["number"]
        if rng.random() < 0.5:
            chosen = rng.randint(low, high)
        else:
            chosen = round(rng.uniform(low, high), rng.choice([1, 2]))
        return str(chosen), chosen
    if "enum" in kind:
        chosen = rng.choice(list(kind["enum"]))
        ways = [*kind["enum"][chosen], chosen] if isinstance(kind["enum"], dict) else None
        return (rng.choice(ways) if ways else chosen), chosen
    if "boolean" in kind:
        chosen = rng.random() < 0.5
        return kind["boolean"][0 if chosen else 1], chosen
    if "date" in kind:
        return _date(rng)
    if "time" in kind:
        hour, minute = rng.randint(0, 23), rng.choice([0, 0, 15, 30, 45, rng.randint(1, 59)])
        said = [f"{hour:02}:{minute:02}", f"{hour}:{minute:02}"]
        if minute == 0:
            said += [f"{hour % 12 or 12} {'am' if hour < 12 else 'pm'}", f"{hour} o'clock"]
        else:
            said += [f"{hour % 12 or 12}:{minute:02} {'am' if hour < 12 else 'pm'}"]
        return rng.choice(said), f"{hour:02}:{minute:02}"
    if "expression" in kind:
        return _expression(rng)
    if "list" in kind:
        values = rng.sample(WORDS[kind["list"]], rng.randint(1, 4))
        return enumerate_words(values), values
    if "numbers" in kind:
        values = [rng.randint(*kind["numbers"]) for _ in range(rng.randint(2, 6))]
        return enumerate_words([str(v) for v in values]), values
    fields = kind.get("items") or kind["object"]
    keys = list(names) or [key.split("|")[0] for key in fields]
    if "object" in kind:
        values = [_field(rng, v) for v in fields.values()]
        return kind["said"].format(*values), dict(zip(keys, values, strict=True))
    things = rng.sample(WORDS[next(iter(fields.values()))], rng.randint(1, 3))
    amounts = [_field(rng, list(fields.values())[1]) for _ in things]
    unit = rng.choice([" ", " ", " x ", " of the "])
    said = enumerate_words([f"{n}{unit}{thing}" for n, thing in zip(amounts, things, strict=True)])
    return said, [dict(zip(keys, pair, strict=True)) for pair in zip(things, amounts, strict=True)]


def _field(rng: random.Random, kind: list | str) -> object:
    return rng.randint(*kind) if isinstance(kind, list) else rng.choice(WORDS[kind])


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
    ]
    said = rng.choice(written)
    return said, day.isoformat()


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
