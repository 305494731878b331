"""A virtual machine that is prepared, and kept."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Final

import trio

from trio_console._guests.machine.guest import MicroVMGuest, Template
from trio_console._guests.machine.launch import NotBootedError
from trio_console._guests.machine.monitor import MonitorError
from trio_console._guests.machine.saved.prepared import discard, keep, new_place
from trio_console._guests.machine.saved.template import save
from trio_console._open.guest import open_guest
from trio_console._session.reset import reset
from trio_console._trio.lost import GuestLostError
from trio_console._trio.threads import NoThreadError, in_thread

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from trio_console._guests.machine.guest import Making
    from trio_console._session.guest import Guest

__all__ = ["make_template"]

#: Seconds for the machine to start, and, if there is none of its kind yet, for the one of which it is a clone.
_LAUNCH_TIME: Final = 300.0


async def make_template(
    spec: MicroVMGuest, prepare: Callable[[Guest], Awaitable[object]], *, name: str | None = None
) -> Template:
    """Prepare a machine, and keep it as it is then: guests of the template go on from there.

    What ``prepare`` has written is in every guest, and what it has started and left in order runs in every one: an
    interpreter that has imported all that it needs, or a server. The sessions of ``prepare`` end with it, and
    nothing of its host is in a guest's environment: not the ``env`` of ``spec``, nor its user.

    If it fails or is cancelled, nothing is left behind. A program that is killed meanwhile leaves a directory,
    which the next call removes, or ``trio-console vm prune``.

    Args:
        spec: the machine, with ``Root.MINIMAL`` or a path for its root, and without shares: what is mounted of
            this machine cannot be saved. It may itself go on from a `Template`.
        prepare: an async function that is given the guest.
        name: with it, the template is kept until ``trio-console vm prune``, and `Template.load` finds it; another
            one of that name is no longer found then. `None`, the default, for one that ends with this program.

    Returns:
        The template. Any task may use it, any number of times.

    Raises:
        TypeError, ValueError: an argument is not valid, or the machine cannot be saved. Nothing was done.
        GuestLostError: the machine was lost, or could not be saved; the message says why.
        OSError, RuntimeError: as for `open_guest`, or there is no room for it.
        Exception: what ``prepare`` has raised.
    """
    if not isinstance(spec, MicroVMGuest):
        raise TypeError(f"a template is made of a MicroVMGuest, not of {spec!r:.100}")
    if name is not None and not (isinstance(name, str) and name):
        raise ValueError(f"the name of a template must be a string that is not empty, not {name!r:.100}")
    making = spec._to_make()
    place = await in_thread("for a template", new_place)
    try:
        making.place = place
        async with open_guest(making, launch_timeout=_LAUNCH_TIME) as guest:
            await prepare(guest)
            await _save(making, guest)
        made = partial(keep, place, making.kind, making.root, name)
        return Template(await in_thread("for a template", made), name)
    except BaseException:
        with trio.CancelScope(shield=True):
            try:
                await in_thread("for a template", partial(discard, place))
            except NoThreadError:
                discard(place)
        raise


async def _save(making: Making, guest: Guest) -> None:
    """Let the agent wait for another host, and save the machine then."""
    machine = making.machine
    await reset(guest._connection)
    try:
        await machine.detach()
        await machine.wait_left(loaded=False)
        await machine.attach()
        await machine.hear_greeting()
        await save(machine, making.place)
    except (NotBootedError, MonitorError) as exc:
        raise GuestLostError(f"the machine could not be kept: {exc}") from exc
