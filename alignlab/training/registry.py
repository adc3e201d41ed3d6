"""TASKS: the tasks by name, alignlab's own and those that a user adds.

One of the user's own is a function of ``seed_data`` that returns a :class:`~alignlab.training.task.Task`, or a Task. A name
has one content for good: neither alignlab's names nor one's own are overwritten, for stored runs and claims go by them.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from functools import partial
from typing import Any, NamedTuple

from alignlab.training.errors import SpecError
from alignlab.training.identity import identity

Content = Any  # a Task, or a function of seed_data that returns one


class Entry(NamedTuple):
    """``content``: what was given. ``whole``: a hash of its code and what it holds, but for data, where that can be hashed."""

    content: Content
    whole: str | None


class Registry(MutableMapping[str, Content]):
    """A mapping from names to tasks, or to functions that make them, which overwrites nothing.

    ``own``: those that cannot be replaced or removed. ``kind``: what is a task.
    """

    def __init__(self, own: Mapping[str, Callable[[int], Any]], kind: type) -> None:
        self._own, self._kind = dict(own), kind
        self._added: dict[str, Entry] = {}

    def __getitem__(self, name: str) -> Content:
        return self._own[name] if name in self._own else self._added[name].content

    def __setitem__(self, name: str, content: Content) -> None:
        """Raises :class:`SpecError` for what makes no task, and for a name that has another content already."""
        self._check(name, content)
        entry, there = self._entry(content), self._added.get(name)
        if there is None:
            self._added[name] = entry
        elif not self._same(entry, there):
            raise SpecError(
                f"there is a task {name!r} already, with another content, which stays: take another name, or "
                f"`del TASKS[{name!r}]` first"
            )

    def __delitem__(self, name: str) -> None:
        if name in self._own:
            raise SpecError(f"{name!r} is one of alignlab's own tasks, and stays")
        del self._added[name]

    def __iter__(self) -> Iterator[str]:
        return iter((*self._own, *self._added))

    def __len__(self) -> int:
        return len(self._own) + len(self._added)

    def is_own(self, name: str) -> bool:
        """Whether a task is the user's."""
        return name in self._added

    def code(self, name: str) -> str:
        """A hash of the files that make a task of the user's own, as they were when it was added, or when IPython's autoreload
        put them into the functions that were there; of a Task, whose data and loss tell all, nothing.

        Raises :class:`SpecError` where it comes from no file.
        """
        content = self._added[name].content
        return "" if isinstance(content, self._kind) else identity(content, held=False)

    def _check(self, name: object, content: Content) -> None:
        if not isinstance(name, str) or not name.strip():
            raise SpecError(f"the name of a task is {name!r:.60}, expected a text")
        if name in self._own:
            raise SpecError(f"{name!r} is one of alignlab's own tasks, and stays: take another name")
        if isinstance(content, self._kind):
            return
        way_out = "expected a function that takes seed_data and returns a Task, or a Task"
        if not callable(content) or isinstance(content, type):
            raise SpecError(f"TASKS[{name!r}] is {content!r:.60}: {way_out}")
        try:
            inspect.signature(content).bind(0)
        except TypeError as error:
            raise SpecError(f"TASKS[{name!r}] is {content!r:.60}, {error}: {way_out}") from None
        except ValueError:  # a function in C may tell nothing of its arguments
            return

    def _entry(self, content: Content) -> Entry:
        if isinstance(content, self._kind):
            return Entry(content, _tried(beyond_data, content))
        _tried(partial(identity, held=False), content)  # its files are read: later they may have changed
        return Entry(content, _tried(identity, content))

    def _same(self, entry: Entry, there: Entry) -> bool:
        if entry.content is there.content:
            return True
        if entry.whole is None or entry.whole != there.whole:
            return False
        is_task = isinstance(entry.content, self._kind)
        return not is_task or bool(entry.content.fingerprint == there.content.fingerprint)


def beyond_data(task: Any) -> str:
    """A hash of what decides a task's numbers beside its data. Raises :class:`SpecError` where there is none."""
    try:
        return identity([task.loss, task.n_out, task.has_accuracy, task.threshold])
    except SpecError as error:
        raise SpecError(f"the loss of task {task.name}: {error}") from None


def _tried(hashed: Callable[[Any], str], content: Content) -> str | None:
    """A hash, or None where there is none."""
    try:
        return hashed(content)
    except SpecError:
        return None
