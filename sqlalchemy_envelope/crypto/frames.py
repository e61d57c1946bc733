"""What an error shows of the frames that it came through: nothing.

Error trackers record the local variables of every frame of a traceback. What is on its way through this
library is a user's secret, a key, or a row of plaintext, and an error may be raised anywhere. So where an
error leaves the library, its frames are emptied: files and lines stay, variables go. The frame it leaves by
still runs and cannot be emptied; it deletes its own.
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
    """Empty every frame of this library that an error, or one that is chained to it, has left."""
    chain: list[BaseException] = [error]
    for link in chain:
        _empty(link.__traceback__)
        for other in (link.__cause__, link.__context__):
            if other is not None and not any(other is one for one in chain):
                chain.append(other)


def _empty(traceback: TracebackType | None) -> None:
    while traceback is not None:
        frame = traceback.tb_frame
        if frame.f_code.co_filename.startswith(_PACKAGE):
            try:
                frame.clear()
            except RuntimeError:
                pass  # it still runs: what is around it empties it
        traceback = traceback.tb_next


def emptying(function: F) -> F:
    """A function by which errors leave the library, with their frames emptied."""
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
    """A class whose public methods are such functions."""
    for name, member in list(vars(cls).items()):
        public = not name.startswith("_") or name in ("__init__", "__enter__", "__exit__")
        if public and isinstance(member, FunctionType):
            setattr(cls, name, emptying(member))
    return cls
