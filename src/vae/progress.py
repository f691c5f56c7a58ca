"""Progress that a terminal shows as a bar, and a pipe or a log as a line every 15 seconds."""

import sys
from typing import Any

from tqdm import tqdm

SECONDS = 15.0


class Progress(tqdm):  # type: ignore[type-arg]
    """tqdm's bar in a terminal, gone at its end; elsewhere lines such as "evaluate 40%". Nothing without `show`."""

    monitor_interval = 0  # tqdm's thread would call `display` again

    def __init__(self, *, show: bool, total: int, **options: Any) -> None:
        self.lines, self.steps = not sys.stderr.isatty(), total
        if self.lines:
            options |= {"mininterval": SECONDS, "delay": SECONDS}
        super().__init__(total=total, disable=not show, leave=False, **options)

    def display(self, msg: str | None = None, pos: int | None = None) -> None:
        """Called by tqdm when there is something new to show, and with an empty `msg` at the end."""
        if not self.lines:
            super().display(msg, pos)
        elif msg is None and self.n < self.steps:
            print(f"{self.desc} {100 * self.n // self.steps:.0f}%", flush=True)
