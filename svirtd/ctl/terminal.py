# SPDX-License-Identifier: LGPL-2.1-or-later
"""Between a command and the outside: one conversation with the daemon, one printed answer."""

import asyncio
import contextlib
import os
import pwd
import shutil
import sys
from collections.abc import Awaitable, Callable, Iterator
from typing import Any, Final, TypeVar

import click

from svirtd.ctl import agent, render
from svirtd.ctl.calls import Calls
from svirtd.ctl.client import Client
from svirtd.ctl.following import Moved

T = TypeVar("T")
C = TypeVar("C", bound=Calls)
_STEPS: Final = 1000
Action = Callable[[Client], Awaitable[T]]


def ask(action: Action[T]) -> T:
    """Connect, do `action`, leave the bus. Raises Failure."""
    return ask_as(Client, action)


def ask_as(kind: type[C], action: Callable[[C], Awaitable[T]]) -> T:
    """As ask(), with another kind of client."""

    async def connected() -> T:
        meta = click.get_current_context().meta
        dialog = agent.on_terminal if meta["svirtd.ctl.ask-password"] else None
        async with kind.connected(meta["svirtd.ctl.bus"], dialog) as client:
            return await action(client)

    return asyncio.run(connected())


def wants_json() -> bool:
    return bool(click.get_current_context().meta["svirtd.ctl.json"])


def screen() -> render.Screen:
    if not sys.stdout.isatty():
        return render.Screen()
    plain = click.get_current_context().meta["svirtd.ctl.no-color"] or os.environ.get("NO_COLOR")
    colour = not plain and os.environ.get("TERM") not in (None, "", "dumb")
    return render.Screen(shutil.get_terminal_size().columns, colour)


def answer(values: object, text: Callable[[], str]) -> None:
    """Print the document, or the text for people."""
    out = render.document(values) + "\n" if wants_json() else text()
    sys.stdout.write(out)
    sys.stdout.flush()


def warn(*, enforced: bool) -> None:
    if not enforced and not wants_json():
        click.echo(click.style(render.NOT_ENFORCED, fg="red", bold=True), err=True, color=_styled())


def _styled() -> bool:
    plain = click.get_current_context().meta["svirtd.ctl.no-color"] or os.environ.get("NO_COLOR")
    return sys.stderr.isatty() and not plain


def shows_progress() -> bool:
    """Say whether there is somebody to be shown how far a job is."""
    return sys.stderr.isatty() and not wants_json()


@contextlib.contextmanager
def progress_bar() -> Iterator[Callable[[Moved], None]]:
    """Show on a terminal how far a job is, once there is something to show; the value is called
    with that."""
    if not shows_progress():
        yield lambda _moved: None
        return
    with contextlib.ExitStack() as stack:
        bar: list[Any] = []
        seen = 0

        def moved(to: Moved) -> None:
            nonlocal seen
            if not bar:
                shown = click.progressbar(length=_STEPS, file=sys.stderr, show_eta=True)
                bar.append(stack.enter_context(shown))
            if to.done:
                bar[0].label = f"{to.done:,} entries, {to.rate:,}/s"
            steps = int(to.progress * _STEPS) - seen
            seen += steps
            bar[0].update(steps)

        yield moved


def user_name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except (KeyError, OverflowError):
        return str(uid)
