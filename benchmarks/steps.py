"""The time of one call, step by step, by a clock around the library's own functions."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

Places = dict[str, list[tuple[Any, str]]]
"""The functions of each step, by the step's name: where they are looked up, and under which name."""


class StepClock:
    """Milliseconds by step. A step inside another step counts only as itself, so the sum is the whole."""

    def __init__(self) -> None:
        self.milliseconds: dict[str, float] = defaultdict(float)
        self.calls: dict[str, int] = defaultdict(int)
        self._inner: list[float] = []

    @contextmanager
    def running(self, places: Places) -> Iterator[None]:
        with ExitStack() as stack:
            for name, functions in places.items():
                for holder, attribute in functions:
                    wrapped = self.around(name, getattr(holder, attribute))
                    stack.enter_context(mock.patch.object(holder, attribute, wrapped))
            yield

    def around(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*arguments: Any, **options: Any) -> Any:
            self.calls[name] += 1
            self._inner.append(0.0)
            start = time.perf_counter()
            try:
                return function(*arguments, **options)
            finally:
                whole = (time.perf_counter() - start) * 1e3
                self.milliseconds[name] += whole - self._inner.pop()
                if self._inner:
                    self._inner[-1] += whole

        return timed
