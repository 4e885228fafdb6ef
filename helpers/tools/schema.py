"""A tool from a typed Python function: its JSON Schema out, checked arguments in.

pydantic does both, so what the model is told about an argument and what is accepted from it
cannot differ. Nothing that a model writes is ever evaluated as code.
"""

import inspect
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import docstring_parser
import pydantic
from pydantic.fields import FieldInfo
from pydantic.json_schema import GenerateJsonSchema

from helpers.errors import CourseError


class BadArguments(ValueError):
    """What a model wrote does not fit the tool: the arguments, and what is wrong with each."""


@dataclass(frozen=True, kw_only=True)
class Tool:
    """A function that a model may ask for.

    Args:
        name: by which the model asks for it; the function's own.
        description: what the model reads about it: the docstring without its ``Args``.
        function: what runs, a plain or an ``async`` one.
        foreign: its result is text written by others (a web page, a mail), which may hold
            instructions. After it has run, no tool that ``acts`` runs without approval.
        acts: it changes something in the world (sends, pays, deletes). Once it has, it runs in no
            later round without approval.
        form: its arguments as a pydantic model, in which an optional one may be null.
    """

    name: str
    description: str
    function: Callable = field(repr=False)
    foreign: bool = False
    acts: bool = False
    form: type[pydantic.BaseModel] = field(repr=False)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the function as if it were not a tool."""
        return self.function(*args, **kwargs)

    def schema(self) -> dict:
        """Return the arguments as JSON Schema."""
        return self.form.model_json_schema(schema_generator=_Plain)

    def definition(self, *, strict: bool = False) -> dict:
        """Return the entry of a request's ``tools``: the Chat Completions form.

        Args:
            strict: ask the server to let the model write nothing else than the schema allows, in
                the form that OpenAI defined: every property is required, and an optional argument
                may be null.
        """
        about = {"name": self.name, "description": self.description}
        if strict:
            import openai  # takes most of a second

            return dict(openai.pydantic_function_tool(self.form, **about))
        return {"type": "function", "function": {**about, "parameters": self.schema()}}

    def arguments(self, text: str) -> dict[str, Any]:
        """Check the arguments that a model wrote and return them as Python values.

        Args:
            text: JSON, as the model wrote it; empty stands for no arguments. Null for an optional
                argument stands for leaving it out. What is left out has the function's default.

        Raises:
            BadArguments: it is no JSON object, or does not fit the schema.
        """
        try:
            return vars(self.form.model_validate_json(text or "{}"))
        except pydantic.ValidationError as error:
            problems = []
            for one in error.errors()[:5]:
                place = ".".join(map(str, one["loc"]))[:80] or "(all)"
                problems.append(f"{place}: {one['msg'][:200]}")
            raise BadArguments("; ".join(problems)) from None
        except Exception as error:  # a validator of the tool's own may raise anything
            raise BadArguments(f"(all): refused ({type(error).__name__})") from None


def tool(
    function: Tool | Callable | None = None, *, foreign: bool = False, acts: bool = False
) -> Any:
    """Make a function a tool; write ``@tool`` above it.

    The JSON Schema comes from the annotations (also ``Literal``, enums, ``Optional``, pydantic
    models, dataclasses), the descriptions from the docstring in Google's style.

    Args:
        function: every parameter annotated; no ``*args``, ``**kwargs`` or positional-only ones.
            What is a tool already stays as it is.
        foreign: see ``Tool``.
        acts: see ``Tool``.

    Raises:
        CourseError: a parameter has no annotation, or one that JSON cannot carry.

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
        return partial(tool, foreign=foreign, acts=acts)
    if isinstance(function, Tool):
        return function
    told = docstring_parser.parse(inspect.getdoc(function) or "")
    about = {one.arg_name: " ".join((one.description or "").split()) for one in told.params}
    try:
        form = _form(function, about)
        form.model_json_schema()
    except Exception as error:  # whatever Python or pydantic make of an annotation
        name = getattr(function, "__name__", function)
        what = f"{name} cannot be a tool: {str(error).splitlines()[0]}"
        hint = "write every parameter as in number: int, with a type that JSON can carry"
        raise CourseError(what, hint) from None
    text = " ".join((told.description or "").split())
    marks = {"foreign": foreign, "acts": acts}
    return Tool(name=function.__name__, description=text, function=function, form=form, **marks)


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
        whole = (root / path).resolve()
        if not whole.is_relative_to(root):
            raise ValueError("the path leads out of the folder")
        return whole

    return Annotated[str, pydantic.AfterValidator(check)]


def definitions(tools: Iterable[Tool | dict], *, strict: bool = False) -> list[dict]:
    """Return tools as a request carries them; definitions that are ready pass unchanged."""
    return [t.definition(strict=strict) if isinstance(t, Tool) else t for t in tools]


class _Plain(GenerateJsonSchema):
    """Without what costs tokens in every prompt and says nothing new: titles, and null."""

    def field_title_should_be_set(self, schema: Any) -> bool:
        return False

    def nullable_schema(self, schema: Any) -> dict[str, Any]:
        return self.generate_inner(schema["schema"])


def _form(function: Callable, about: dict[str, str]) -> type[pydantic.BaseModel]:
    """Return a function's parameters as a pydantic model."""
    fields: dict[str, Any] = {}
    for key, one in inspect.signature(function, eval_str=True).parameters.items():
        hint, default = one.annotation, one.default
        if hint is one.empty or one.kind not in (one.POSITIONAL_OR_KEYWORD, one.KEYWORD_ONLY):
            raise TypeError(f"a model cannot fill the parameter {one}")
        if default is one.empty:
            default = ...
        elif not isinstance(default, FieldInfo):
            hint = Annotated[hint | None, pydantic.AfterValidator(partial(_given, default))]
        fields[key] = (Annotated[hint, pydantic.Field(description=about.get(key))], default)
    with warnings.catch_warnings(action="ignore"):  # an argument may be called ``copy``
        config = pydantic.ConfigDict(extra="forbid")
        return pydantic.create_model(function.__name__, __config__=config, **fields)


def _given(default: Any, value: Any) -> Any:
    return default if value is None else value
