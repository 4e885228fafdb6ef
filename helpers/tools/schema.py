"""A tool from a typed Python function: its JSON Schema out, checked arguments in.

pydantic does both, so what the model is told about an argument and what is accepted from it
cannot differ. Nothing a model writes is ever evaluated as code.
"""

import contextlib
import inspect
import typing
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, NotRequired

import docstring_parser
from pydantic import (
    AfterValidator,
    ConfigDict,
    Field,
    PydanticUserError,
    TypeAdapter,
    WithJsonSchema,
)
from pydantic.fields import FieldInfo
from pydantic_core import SchemaError, from_json, to_jsonable_python
from typing_extensions import TypedDict  # pydantic reads the standard one from Python 3.12 on

from helpers.errors import CourseError

_NULL = {"type": "null"}
_MOST_PROBLEMS = 5  # told to the model about one call


class BadArguments(ValueError):
    """What a model wrote does not fit the tool; ``problems`` says where, in pydantic's words."""

    def __init__(self, problems: list[dict]) -> None:
        super().__init__("; ".join(f"{p['argument']}: {p['problem']}" for p in problems))
        self.problems = problems


@dataclass(frozen=True, kw_only=True)
class Tool:
    """A function that a model may ask for.

    Args:
        name: by which the model asks for it; the function's own.
        description: what the model reads about it: the docstring without its ``Args``.
        function: what runs, a plain or an ``async`` one.
        foreign: its result is text written by others (a web page, a mail), which may hold
            instructions. After it has run, no tool that ``acts`` runs without approval.
        acts: it changes something in the world (sends, pays, deletes).
    """

    name: str
    description: str
    function: Callable = field(repr=False)
    foreign: bool = False
    acts: bool = False
    _adapter: TypeAdapter = field(repr=False)
    _optional: frozenset[str] = field(repr=False)

    def __call__(self, *args, **kwargs):
        """Call the function as if it were not a tool."""
        return self.function(*args, **kwargs)

    def schema(self, *, strict: bool = False) -> dict:
        """Return the arguments as JSON Schema, every nested model written out in its place.

        Args:
            strict: in the form that OpenAI's ``strict`` asks for: every property is required,
                and an optional one may be null.
        """
        whole = self._adapter.json_schema()
        return _plain(whole, whole.get("$defs", {}), strict)

    def definition(self, *, strict: bool = False) -> dict:
        """Return the entry of a request's ``tools``: the Chat Completions form.

        Args:
            strict: ask the server to let the model write nothing else than the schema allows.
        """
        function = {
            "name": self.name,
            "description": self.description,
            "parameters": self.schema(strict=strict),
        }
        if strict:
            function["strict"] = True
        return {"type": "function", "function": function}

    def arguments(self, text: str) -> dict[str, Any]:
        """Check the arguments that a model wrote and return them as Python values.

        Args:
            text: JSON, as the model wrote it; empty stands for no arguments.

        Raises:
            BadArguments: it is no JSON object, or does not fit the schema.
        """
        text = text or "{}"
        try:
            from_json(text)
        except (ValueError, TypeError) as error:  # TypeError: half a surrogate pair
            raise BadArguments([_problem("(all)", f"not valid JSON: {error}")]) from None
        try:
            found = self._adapter.validate_json(text)
        except ValueError as error:  # pydantic's ValidationError is one
            raise BadArguments(_problems(error)) from None
        except (Exception, SystemExit) as error:  # a validator of the tool's own may raise it
            raise BadArguments([_problem("(all)", f"refused ({type(error).__name__})")]) from None
        # Null for what may be left out stands for leaving it out: the function has the default.
        return {k: v for k, v in found.items() if not (v is None and k in self._optional)}


def tool(
    function: Callable | None = None, *, foreign: bool = False, acts: bool = False
) -> Tool | Callable[[Callable], Tool]:
    """Make a function a tool; write ``@tool`` above it.

    The JSON Schema comes from the annotations (also ``Literal``, enums, ``Optional``, pydantic
    models, dataclasses), the descriptions from the docstring in Google's style.

    Args:
        function: every parameter annotated; no ``*args``, ``**kwargs`` or positional-only ones.
        foreign: see ``Tool``.
        acts: see ``Tool``.

    Raises:
        CourseError: a parameter has no annotation, or one that JSON cannot carry; or it yields.

    >>> @tool
    ... def area(width: float, height: float = 1.0) -> float:
    ...     '''Area of a rectangle.
    ...
    ...     Args:
    ...         width: in metres.
    ...         height: in metres.
    ...     '''
    ...     return width * height
    >>> area.schema()["required"], area.schema()["properties"]["width"]
    (['width'], {'description': 'in metres.', 'type': 'number'})
    >>> area(**area.arguments('{"width": "3"}'))
    3.0
    """
    if function is None:
        return lambda it: tool(it, foreign=foreign, acts=acts)
    if isinstance(function, Tool):
        return replace(
            function, foreign=foreign or function.foreign, acts=acts or function.acts
        )  # a warning stays
    name = getattr(function, "__name__", "")
    if not (name.isidentifier() and name.isascii() and len(name) <= 64):
        raise CourseError(
            f"{function!r} has no name that a model could call",
            "use def, and at most 64 ASCII letters, digits and _",
        )
    if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
        raise CourseError(f"{name} yields its results one by one", "return them in a list")
    told = docstring_parser.parse(inspect.getdoc(function) or "")
    about = {param.arg_name: " ".join((param.description or "").split()) for param in told.params}
    try:
        hints = typing.get_type_hints(function, include_extras=True)
    except (NameError, TypeError, SyntaxError, AttributeError) as error:
        raise CourseError(f"{name}: an annotation cannot be read: {error}") from None
    fields, optional = {}, set()
    for key, parameter in inspect.signature(function).parameters.items():
        _check(name, parameter, hints)
        kind = hints[key]
        if parameter.default is not parameter.empty:
            optional.add(key)
            kind = kind | None
        note = {"description": about[key]} if about.get(key) else {}
        if key in optional and parameter.default is not None:
            with contextlib.suppress(ValueError):  # a default that JSON has no form for
                default = to_jsonable_python(parameter.default)
                note["json_schema_extra"] = {"default": default}
        kind = Annotated[kind, Field(**note)]
        fields[key] = NotRequired[kind] if key in optional else kind
    form = TypedDict(name, fields)
    form.__pydantic_config__ = ConfigDict(extra="forbid", use_attribute_docstrings=True)
    text = [part for part in (told.short_description, told.long_description) if part]
    try:
        made = Tool(
            name=name,
            description=" ".join(" ".join(text).split()),
            function=function,
            foreign=foreign,
            acts=acts,
            _adapter=TypeAdapter(form),
            _optional=frozenset(optional),
        )
        made.schema()
    except (PydanticUserError, SchemaError, TypeError) as error:
        what = str(error).splitlines()[0]
        hint = "use str, int, float, bool, Literal, lists, dicts and pydantic models"
        raise CourseError(f"{name}: JSON cannot carry an argument: {what}", hint) from None
    return made


def inside(folder: str | Path) -> Any:
    """Return a type for file arguments that cannot leave a folder.

    The path is resolved (``..``, symbolic links) before it is compared, and the function gets the
    resolved one. It need not exist.

    Args:
        folder: every path is taken from here.

    >>> @tool
    ... def read_note(name: inside("notes")) -> str:
    ...     return name.read_text()
    >>> read_note.arguments('{"name": "../.env"}')
    Traceback (most recent call last):
    helpers.tools.schema.BadArguments: name: Value error, the path leads out of the folder
    """
    root = Path(folder).resolve()

    def check(path: str) -> Path:
        try:
            whole = (root / path).resolve()
        except (OSError, RuntimeError):  # too long, or a loop of links
            raise ValueError("this is not a usable path") from None
        if not whole.is_relative_to(root):
            raise ValueError("the path leads out of the folder")
        return whole

    return Annotated[str, AfterValidator(check), WithJsonSchema({"type": "string"})]


def definitions(tools: "typing.Iterable[Tool | dict]", *, strict: bool = False) -> list[dict]:
    """Return tools as a request carries them; definitions that are ready pass unchanged."""
    return [t.definition(strict=strict) if isinstance(t, Tool) else t for t in tools]


def _check(name: str, parameter: inspect.Parameter, hints: dict) -> None:
    if parameter.kind not in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
        raise CourseError(
            f"{name}: {parameter} cannot be filled by a model",
            "a tool takes named parameters only",
        )
    if isinstance(parameter.default, FieldInfo):
        raise CourseError(
            f"{name}: the default of {parameter.name} is a Field, which a plain call would receive",
            f"write {parameter.name}: Annotated[int, Field(ge=1)] = 5",
        )
    if parameter.name not in hints:
        raise CourseError(
            f"{name}: {parameter.name} has no annotation",
            f"write its type, e.g. {parameter.name}: str",
        )


def _plain(part: Any, defs: dict, strict: bool, seen: tuple = ()) -> Any:
    """Return a schema without ``$ref``, titles, and what only repeats that a value is optional."""
    if isinstance(part, list):
        return [_plain(item, defs, strict, seen) for item in part]
    if not isinstance(part, dict):
        return part
    if "$ref" in part:
        name = part["$ref"].rpartition("/")[2]
        if name in seen:
            raise CourseError(
                f"{name} holds itself, which most servers cannot guide a model through",
                "give the model a flat list instead",
            )
        rest = {key: value for key, value in part.items() if key != "$ref"}
        return _plain({**defs[name], **rest}, defs, strict, (*seen, name))
    plain = {
        key: value if key in ("default", "const", "enum") else _plain(value, defs, strict, seen)
        for key, value in part.items()
        if key not in ("$defs", "title", "properties", "required")
    }
    if "properties" in part:
        parts = {
            key: _plain(value, defs, strict, seen) for key, value in part["properties"].items()
        }
        needed = list(parts) if strict else part.get("required", [])
        for key in parts:
            if strict:
                parts[key].pop("default", None)
            elif key not in needed:
                parts[key] = _without_null(parts[key])
        plain |= {"properties": parts, "required": needed}
        if strict:
            plain["additionalProperties"] = False
    return plain


def _without_null(schema: dict) -> dict:
    choices = [choice for choice in schema.get("anyOf", ()) if choice != _NULL]
    if not choices:
        return schema
    rest = {key: value for key, value in schema.items() if key != "anyOf"}
    if rest.get("default", 0) is None:
        del rest["default"]
    return {**choices[0], **rest} if len(choices) == 1 else {**rest, "anyOf": choices}


def _problems(error: ValueError) -> list[dict]:
    if not hasattr(error, "errors"):
        return [_problem("(all)", "refused")]
    found = error.errors(include_url=False, include_context=False, include_input=False)
    problems = [
        _problem(".".join(map(str, one["loc"])) or "(all)", one["msg"])
        for one in found[:_MOST_PROBLEMS]
    ]
    more = len(found) - len(problems)
    return problems + ([_problem("(more)", f"{more} more problems")] if more > 0 else [])


def _problem(argument: str, problem: str) -> dict:
    return {"argument": argument[:80], "problem": problem[:200]}
