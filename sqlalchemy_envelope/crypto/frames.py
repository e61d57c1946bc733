"""Emptied frames: an error that leaves the library shows no local variable of the library.

Error trackers record the local variables of every frame of a traceback. In this library those are a user's
secret, a key or a row of plaintext, and an error may be raised anywhere. So the frames of an error are
emptied where it leaves the library: files and lines stay, variables go. The frame that does so still runs
and cannot be emptied; it deletes its own variables.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from types import FunctionType
from typing import TYPE_CHECKING, Any, TypeVar, cast

if TYPE_CHECKING:
    from types import TracebackType

_PACKAGE = str(Path(__file__).parent.parent)

F = TypeVar("F", bound=Callable[..., Any])
C = TypeVar("C", bound=type[Any])


def empty_frames(error: BaseException) -> None:
    """Empty the frames of this library in the tracebacks of an error and of the errors chained to it."""
    for link in chained(error):
        _empty(link.__traceback__)


def chained(error: BaseException) -> list[BaseException]:
    """An error, and after it every error that is a cause or a context in its chain, each once."""
    chain = [error]
    for link in chain:
        for other in (link.__cause__, link.__context__):
            if other is not None and not any(other is known for known in chain):
                chain.append(other)
    return chain


def _empty(traceback: TracebackType | None) -> None:
    while traceback is not None:
        frame = traceback.tb_frame
        if frame.f_code.co_filename.startswith(_PACKAGE):
            try:
                frame.clear()
            except RuntimeError:
                pass  # the frame still runs: an outer call empties it later
        traceback = traceback.tb_next


def emptying(function: F) -> F:
    """Wrap a function by which errors leave the library: the frames of each error are emptied."""
    if inspect.iscoroutinefunction(function):

        @wraps(function)
        async def awaited(*arguments: Any, **named: Any) -> Any:
            try:
                return await function(*arguments, **named)
            except BaseException as error:
                empty_frames(error)
                del arguments, named
                raise

        return cast("F", awaited)

    @wraps(function)
    def called(*arguments: Any, **named: Any) -> Any:
        try:
            return function(*arguments, **named)
        except BaseException as error:
            empty_frames(error)
            del arguments, named
            raise

    return cast("F", called)


def emptying_class(cls: C) -> C:
    """Wrap the public methods of a class, its `__init__`, `__enter__` and `__exit__` as `emptying` does."""
    for name, member in list(vars(cls).items()):
        public = not name.startswith("_") or name in ("__init__", "__enter__", "__exit__")
        if public and isinstance(member, FunctionType):
            setattr(cls, name, emptying(member))
    return cls
