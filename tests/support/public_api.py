"""The public interface as text: every name with its parameters, types, defaults and values.

``make api`` writes it to tests/public_api.txt, and a test compares. A line that changes there is a change
for everybody who uses sfroute: what goes, or means something else, breaks programs; what comes is a promise.
"""

from __future__ import annotations

import ast
import dataclasses
import enum
import importlib
import inspect
import re
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from types import GenericAlias, ModuleType, UnionType
from typing import Any, Final, Literal, cast

__all__ = ["INTERNAL", "MODULES", "SNAPSHOT", "describe", "public_names", "render"]

SNAPSHOT: Final = Path(__file__).parent.parent / "public_api.txt"
HEADING: Final = "# What sfroute promises its users. Written by `make api`; do not edit.\n"
WIDTH: Final = 100

MODULES: Final[dict[str, tuple[str, ...]]] = {
    "sfroute": (),
    "sfroute.asgi": (),
    "sfroute.wsgi": (),
    "sfroute.fastapi": (),
    "sfroute.embedded": (),
    "sfroute.pytest_plugin": (),
    "sfroute.telemetry": (),
}
"""Public is what stands in ``__all__``, and these names besides."""

INTERNAL: Final = {
    # What the rest of the package records with.
    "sfroute.telemetry": {
        *("CURRENT", "CallRecord", "ClientRecord", "Retry", "SharedWork", "Telemetry", "traced"),
        *("AgentStats", "PodsSeen"),
    },
}
"""What the package's own modules use of each other; no part of the public interface, as each says."""

_LITERAL: Final = type(Literal["any"])
_GENERIC: Final = type(Callable[[], None])

ENTERED: Final = {"__enter__": "with", "__aenter__": "async with"}


def render() -> str:
    """The whole text."""
    text = HEADING
    for name in MODULES:
        text += f"\n\n# --- {name}\n"
        for block in _blocks(importlib.import_module(name)):
            text += "\n" + "\n".join(block) + "\n"
    # Where a function of a default lies in memory.
    return re.sub(r" at 0x[0-9a-f]+", "", text)


def public_names(module: ModuleType) -> set[str]:
    """What a module promises."""
    name = module.__name__
    return {*module.__all__, *MODULES[name]} - INTERNAL.get(name, set())


def _blocks(module: ModuleType) -> Iterator[list[str]]:
    """One for each name, and the types that they are told in."""
    name = module.__name__
    public = public_names(module)
    if name == "sfroute.pytest_plugin":
        yield _settings(module)
    shown = []
    for each in sorted(public):
        shown.append(describe(each, getattr(module, each)))
        yield shown[-1]
    for alias, value in _aliases(shown):
        if alias not in public:
            yield describe(alias, value)


def _aliases(blocks: list[list[str]]) -> Iterator[tuple[str, object]]:
    """What annotations call by a name of the package that is no class."""
    words = {word for block in blocks for line in block for word in re.findall(r"[A-Z]\w+", line)}
    modules = [module for name, module in sys.modules.items() if name.startswith("sfroute.")]
    for word in sorted(words):
        values = [getattr(module, word) for module in modules if hasattr(module, word)]
        if values and isinstance(values[0], (GenericAlias, UnionType, _LITERAL, _GENERIC)):
            yield word, values[0]


def describe(name: str, value: Any) -> list[str]:
    """The lines that tell what a public name is."""
    if name == "__version__":
        return ["__version__: str"]  # it changes with each release
    if hasattr(value, "_get_wrapped_function"):
        scope = value._fixture_function_marker.scope
        return [f"@fixture(scope={scope!r})", *_function(name, value._get_wrapped_function())]
    if inspect.isclass(value):
        return _class(name, value)
    if inspect.isroutine(value):
        return _function(name, value)
    return [f"{name} = {re.sub(r'(collections.abc|typing)[.]', '', repr(value))}"]


def _settings(module: ModuleType) -> list[str]:
    """What may stand in the configuration of pytest."""
    found = []

    class Parser:
        def addini(self, name: str, help: str, default: object) -> None:  # noqa: A002
            found.append(f"setting {name} = {default!r}")

    module.pytest_addoption(cast("Any", Parser()))
    return found


# --- functions


def _function(name: str, function: Any) -> list[str]:
    keyword = "async def" if inspect.iscoroutinefunction(function) else "def"
    return _signature(f"{keyword} {name}", inspect.signature(function))


def _signature(start: str, signature: inspect.Signature) -> list[str]:
    """In one line, or with a line for each parameter."""
    parameters = list(_parameters(signature))
    result = signature.return_annotation
    end = ")" if result is inspect.Signature.empty else f") -> {_annotation(result)}"
    line = f"{start}({', '.join(parameters)}{end}"
    if len(line) <= WIDTH:
        return [line]
    return [f"{start}(", *(f"    {parameter}," for parameter in parameters), end]


def _parameters(signature: inspect.Signature) -> Iterator[str]:
    kinds = [parameter.kind for parameter in signature.parameters.values()]
    for index, parameter in enumerate(signature.parameters.values()):
        if parameter.name in ("self", "cls") and index == 0:
            continue
        keyword_only = parameter.kind is inspect.Parameter.KEYWORD_ONLY
        if keyword_only and not {inspect.Parameter.VAR_POSITIONAL, parameter.kind} & set(
            kinds[:index]
        ):
            yield "*"
        stars: dict[object, str] = {
            inspect.Parameter.VAR_POSITIONAL: "*",
            inspect.Parameter.VAR_KEYWORD: "**",
        }
        text = stars.get(parameter.kind, "") + parameter.name
        if parameter.annotation is not inspect.Parameter.empty:
            text += f": {_annotation(parameter.annotation)}"
        if parameter.default is not inspect.Parameter.empty:
            text += f" = {parameter.default!r}"
        yield text
        if parameter.kind is inspect.Parameter.POSITIONAL_ONLY and (
            kinds[index + 1 :][:1] != [inspect.Parameter.POSITIONAL_ONLY]
        ):
            yield "/"


def _annotation(annotation: object) -> str:
    """As it stands in the source: every module postpones the evaluation of its annotations."""
    return annotation if isinstance(annotation, str) else inspect.formatannotation(annotation)


# --- classes


def _class(name: str, kind: type[Any]) -> list[str]:
    bases = [base.__name__ for base in kind.__bases__ if base is not object]
    if hasattr(kind, "_field_defaults"):
        bases = ["NamedTuple"]
    lines = [f"class {name}({', '.join(bases)}):" if bases else f"class {name}:"]
    if dataclasses.is_dataclass(kind):
        frozen = cast("Any", kind).__dataclass_params__.frozen
        lines.insert(0, "@dataclass(frozen=True)" if frozen else "@dataclass")
    members = [*_fields(kind), *_constructor(kind), *_attributes(kind), *_members(kind)]
    return lines + [f"    {line}" for line in members or ["..."]]


def _own_classes(kind: type[Any]) -> list[type[Any]]:
    """The class, and the bases that are not public themselves: what they have is the class's, for its users."""
    import sfroute

    public = {getattr(sfroute, name) for name in sfroute.__all__ if name != "__version__"}
    return [
        each
        for each in kind.__mro__
        if each is kind or (each.__module__.startswith("sfroute") and each not in public)
    ]


def _fields(kind: type[Any]) -> Iterator[str]:
    """Of dataclasses, named tuples and enumerations."""
    if dataclasses.is_dataclass(kind):
        for field in dataclasses.fields(kind):
            if not field.name.startswith("_"):
                text = f"{field.name}: {_annotation(field.type)}"
                if field.default is not dataclasses.MISSING:
                    text += f" = {field.default!r}"
                elif field.default_factory is not dataclasses.MISSING:
                    text += f" = {cast('Any', field.default_factory).__name__}()"
                yield text if field.init else f"{text}  # not a parameter"
    elif issubclass(kind, tuple):
        for name, annotation in inspect.get_annotations(kind).items():
            default = getattr(kind, "_field_defaults", {})
            text = f"{name}: {getattr(annotation, '__forward_arg__', annotation)}"
            yield text + (f" = {default[name]!r}" if name in default else "")
    elif issubclass(kind, enum.Enum):
        for each in kind:
            yield f"{each.name} = {each.value!r}"


def _constructor(kind: type[Any]) -> list[str]:
    generated = dataclasses.is_dataclass(kind) or issubclass(kind, (tuple, enum.Enum))
    owner = next((each for each in kind.__mro__ if "__init__" in vars(each)), object)
    if generated or owner.__module__ == "builtins" or getattr(kind, "_is_protocol", False):
        return []
    return _signature("def __init__", inspect.signature(cast("Any", kind).__init__))


def _attributes(kind: type[Any]) -> list[str]:
    """What ``__init__`` sets under a public name, with the type that is written there or the parameter's."""
    found: dict[str, str] = {}
    for each in reversed(_own_classes(kind)):
        function = vars(each).get("__init__")
        if dataclasses.is_dataclass(each) or not inspect.isfunction(function):
            continue
        annotations = inspect.get_annotations(function)
        for node in ast.walk(ast.parse(textwrap.dedent(inspect.getsource(function)))):
            for target in _targets(node):
                if isinstance(target, ast.Attribute) and ast.unparse(target.value) == "self":
                    own = isinstance(node, ast.AnnAssign) and ast.unparse(node.annotation)
                    found[target.attr] = own or annotations.get(target.attr, "")
    return [
        f"{name}: {written}" if written else name
        for name, written in sorted(found.items())
        if not name.startswith("_")
    ]


def _targets(node: ast.AST) -> list[ast.expr]:
    if isinstance(node, ast.Assign):
        return node.targets
    return [node.target] if isinstance(node, ast.AnnAssign) else []


def _members(kind: type[Any]) -> Iterator[str]:
    found: dict[str, Any] = {}
    for each in reversed(_own_classes(kind)):
        found |= vars(each)
    fields = {*getattr(kind, "_fields", ()), *getattr(kind, "__dataclass_fields__", ())}
    for name in sorted(found):
        if name in ENTERED:
            result = _annotation(inspect.signature(found[name]).return_annotation)
            yield f"{ENTERED[name]} -> {result}"
        public = name == "__call__" or not name.startswith("_")
        if public and name not in fields:
            yield from _member(name, found[name])


def _member(name: str, member: Any) -> list[str]:
    if isinstance(member, property):
        assert member.fget is not None
        result = _annotation(inspect.signature(member.fget).return_annotation)
        return [f"property {name} -> {result}"]
    if isinstance(member, (classmethod, staticmethod)):
        decorator = f"@{type(member).__name__}"
        return [decorator, *_function(name, member.__func__)]
    member = inspect.unwrap(member)  # of a hot method
    if inspect.isfunction(member):
        return _function(name, member)
    if inspect.ismemberdescriptor(member):  # a slot: what fills it is an attribute
        return []
    return [f"{name} = {member!r}"]


if __name__ == "__main__":
    SNAPSHOT.write_text(render(), encoding="utf-8")
    sys.stdout.write(
        f"wrote {SNAPSHOT.relative_to(Path.cwd())}; look at git diff before committing it\n"
    )
