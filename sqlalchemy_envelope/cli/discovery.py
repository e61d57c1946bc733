"""`--app package.module:object`: the user's own migrator or campaign, found in the user's own code."""

import importlib
import sys
import traceback
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Generic, TypeVar

import click

from sqlalchemy_envelope import EnvelopeError
from sqlalchemy_envelope.words import with_article

T = TypeVar("T")


@dataclass(frozen=True)
class Found(Generic[T]):
    """The object that was found, and the reference by which other processes find it again."""

    value: T
    reference: str


def discover(app: str, kind: type[T]) -> Found[T]:
    """The object of this kind that `--app` names: itself, by a function, or as the only such in a module.

    Raises:
        click.BadParameter: there is no such object, there are several, or the code cannot be imported.
    """
    name, _, attribute = app.partition(":")
    if not name or (":" in app and not attribute):
        raise _refused(f"{app!r} names no object: write package.module:object.")
    module = _import(name)
    if not attribute:
        found = {key: one for key, one in vars(module).items() if isinstance(one, kind)}
        if len({id(one) for one in found.values()}) != 1:
            names = ", ".join(sorted(found)) or "none"
            raise _refused(
                f"{name} has to have one {kind.__name__} in it, and has {names}: write {name}:object."
            )
        attribute, value = next(iter(found.items()))
        return Found(value, f"{name}:{attribute}")
    given, wanted = _attribute(module, attribute), with_article(kind.__name__)
    reference = f"{name}:{attribute}"
    if isinstance(given, kind):
        return Found(given, reference)
    inner = getattr(given, "migrator", None)
    if isinstance(inner, kind):
        return Found(inner, f"{reference}.migrator")
    if callable(given) and not isinstance(given, type):
        try:
            made = given()
        except Exception as error:  # noqa: BLE001 - the user's code: the error becomes a single line
            raise _refused(f"{reference}() failed: {_shown(error)}.") from None
        if isinstance(made, kind):
            return Found(made, reference)
        raise _refused(f"{reference}() gave {with_article(type(made).__name__)}, and not {wanted}.")
    raise _refused(
        f"{reference} is {with_article(type(given).__name__)}. Name {wanted}, or a function that makes it."
    )


def _import(name: str) -> ModuleType:
    folder = str(Path.cwd())
    if folder not in sys.path:
        sys.path.insert(0, folder)
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is not None and (name == error.name or name.startswith(f"{error.name}.")):
            raise _refused(f"there is no module {error.name!r} in {folder} or on the path.") from None
        raise _refused(f"{name} cannot be imported: {_shown(error)}.") from None
    except Exception as error:  # noqa: BLE001 - as above
        raise _refused(f"{name} cannot be imported: {_shown(error)}.") from None


def _attribute(module: ModuleType, attribute: str) -> Any:
    found: Any = module
    for part in attribute.split("."):
        if not hasattr(found, part):
            raise _refused(f"{module.__name__} has no {attribute!r}.")
        found = getattr(found, part)
    return found


def _shown(error: Exception) -> str:
    """The error's type and place. Only errors that quote names show a message: others may quote a setting."""
    words = f": {error}" if isinstance(error, (ImportError, SyntaxError, LookupError, EnvelopeError)) else ""
    frames = traceback.extract_tb(error.__traceback__)
    own = [one for one in frames if _is_of_user(one.filename)]
    place = f" ({own[-1].filename}, line {own[-1].lineno})" if own else ""
    return f"{type(error).__name__}{words}{place}"


def _is_of_user(filename: str) -> bool:
    return not filename.startswith(("<", str(Path(__file__).parents[1])))


def _refused(message: str) -> click.BadParameter:
    return click.BadParameter(message, param_hint="'--app'")
