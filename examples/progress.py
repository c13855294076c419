"""Progress bars that become lines where there is no terminal, such as in a log file."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, TypeVar

from rich import progress as rich_progress
from rich.console import Console

Item = TypeVar("Item")


class Progress(rich_progress.Progress):
    """Rich's progress bars; without a terminal, a line whenever a task has come a quarter further."""

    def add_task(self, description: str, *args: Any, **options: Any) -> rich_progress.TaskID:
        """Adds a task, and says that it starts."""
        task = super().add_task(description, *args, **options)
        self._say(task, 0)
        return task

    def advance(self, task_id: rich_progress.TaskID, advance: float = 1) -> None:
        """Moves a task on."""
        before = self._quarter(task_id)
        super().advance(task_id, advance)
        self._say_if_new(task_id, before)

    def update(self, task_id: rich_progress.TaskID, **options: Any) -> None:
        """Changes a task."""
        before = self._quarter(task_id)
        super().update(task_id, **options)
        self._say_if_new(task_id, before)

    def _quarter(self, task_id: rich_progress.TaskID) -> int:
        task = self._tasks[task_id]
        return int(4 * task.completed / task.total) if task.total else 0

    def _say_if_new(self, task_id: rich_progress.TaskID, before: int) -> None:
        after = self._quarter(task_id)
        if after > before:
            self._say(task_id, after)

    def _say(self, task_id: rich_progress.TaskID, quarter: int) -> None:
        if not self.console.is_terminal:
            words = f"{self._tasks[task_id].description}: {25 * quarter} %"
            print(words, file=self.console.file, flush=True)


def track(
    items: Iterable[Item],
    description: str = "working",
    *,
    total: float | None = None,
    console: Console | None = None,
    transient: bool = True,
) -> Iterator[Item]:
    """Yields items, and shows how many are done."""
    if total is None and isinstance(items, Sequence):
        total = len(items)
    with Progress(console=console, transient=transient) as bars:
        task = bars.add_task(description, total=total)
        for item in items:
            yield item
            bars.advance(task)
