"""A verb that works through many rows in batches: each turn of a loop does one, and the loop commits."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, ClassVar, Generic, Self, TypeVar

from sqlalchemy_envelope.crypto.frames import emptying

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

P = TypeVar("P")


class Batches(Generic[P]):
    """A run of a verb: a loop over it does a batch at each turn, and gets the progress.

    Args:
        start: the progress before the first batch.
        one_batch: does the batch after this progress; None after the last one.
    """

    undone: ClassVar[str]
    """What is warned of a run without a loop."""

    def __init__(self, start: P, one_batch: Callable[[P], P | None]) -> None:
        self._one_batch = one_batch
        self._so_far = start
        self._is_begun = False

    def __iter__(self) -> Self:
        return self

    @emptying
    def __next__(self) -> P:
        self._is_begun = True
        found = self._one_batch(self._so_far)
        if found is None:
            raise StopIteration
        self._so_far = found
        return found

    def close(self) -> None:
        """Give the run up, as a generator's: it is not warned of."""
        self._is_begun = True

    def __del__(self) -> None:
        _warn_unless(getattr(self, "_is_begun", True), self.undone)


class AsyncBatches(Generic[P]):
    """As `Batches`, for `async for`."""

    undone: ClassVar[str]

    def __init__(self, start: P, one_batch: Callable[[P], Awaitable[P | None]]) -> None:
        self._one_batch = one_batch
        self._so_far = start
        self._is_begun = False

    def __aiter__(self) -> Self:
        return self

    @emptying
    async def __anext__(self) -> P:
        self._is_begun = True
        found = await self._one_batch(self._so_far)
        if found is None:
            raise StopAsyncIteration
        self._so_far = found
        return found

    def __del__(self) -> None:
        _warn_unless(getattr(self, "_is_begun", True), self.undone)


def _warn_unless(is_begun: bool, undone: str) -> None:
    if not is_begun:
        warnings.warn(f"{undone}: loop over it, and commit at each turn", RuntimeWarning, stacklevel=3)
