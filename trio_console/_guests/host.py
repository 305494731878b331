"""A guest that was started and booted, and its orderly end: what `open_guest` and `serve_relay` have in common.

The console may be a device or a stream, and the guest may have been started by a spec or by other code. From here
on that makes no difference: a console that is given is run like a spec that has nothing to start.
"""

from __future__ import annotations

from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Final, NamedTuple, final

import trio

from trio_console._console.channel import SHORT_GRACE
from trio_console._console.opened import (
    aclose_by_force,
    aclose_quietly,
    close_console,
    console_of,
    opened_console,
)
from trio_console._console.polled import PolledStream
from trio_console._console.stream import ConsoleStream
from trio_console._guests.carrier import carried
from trio_console._guests.process import ProcessGuest
from trio_console._guests.spec import GuestHost, GuestSpec
from trio_console._guests.supervisor import ProcessHost
from trio_console._session.boot import boot
from trio_console._trio.clocks import Stopwatch
from trio_console._trio.ending import see_through
from trio_console._trio.interrupts import interrupt_safe
from trio_console._trio.lost import GuestLostError, explained
from trio_console._trio.nursery import hidden_nursery

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from trio_console._console.devices import ConsoleDevice, GuestDevice
    from trio_console._console.stream import ConsoleStatistics
    from trio_console._guests.carrier import Carrier
    from trio_console._machine.described import Machine
    from trio_console._session.boot import Booted
    from trio_console._session.confirmations import Confirmations
    from trio_console._wire import Bootstrap

__all__ = ["CANCELLED_GRACE", "Host", "Progress", "booted_host", "end", "own_console", "spec_of"]

#: Seconds of the grace that are kept for steps without an answer from the guest: closing, killing, joining.
_FORCE_TIME: Final = 2 * SHORT_GRACE

#: Seconds that the orderly part has in any case, for the frame that tells the guest to end: other bytes may have
#: to get to the console before it. Only a guest that does not read takes all this time.
_TELL_TIME: Final = 0.1

#: Seconds for the orderly part if the leaving was cancelled.
CANCELLED_GRACE: Final = 1.0

#: Seconds of silence after which a console has nothing more to say whose guest is gone.
_LAST_WORDS_TIME: Final = 1.0


class Progress(NamedTuple):
    """How far the reading of a console has come.

    Attributes:
        read: frames or bytes; it only grows.
        waits: whether the reader waits for more, and not for somebody who does not read.
    """

    read: int
    waits: bool


@final
class Host:
    """A guest that is ready.

    Attributes:
        carrier: what carries it.
        channel: its console.
        booted: what it has said when it was ready.
        machine: the virtual machine that it is, if it is one.
        open_port: opens a further port of it, if it has any.
        fork: makes copies of it, if that is possible.
        progress: tells how far the reading of the console has come; set by whoever reads it.
    """

    def __init__(self, carrier: Carrier, channel: trio.abc.Stream) -> None:
        self.carrier: Final = carrier
        self.channel: Final = channel
        self.booted: Booted
        self.machine: Machine | None = carrier.host.machine
        self.open_port: Final = carrier.host.open_port
        self.fork: Final = carrier.host.fork
        self.progress: Callable[[], Progress] = partial(Progress, 0, waits=True)

    def explain(self) -> Awaitable[str]:
        """See `Carrier.explain`."""
        return self.carrier.explain()

    def cause(self) -> Exception | None:
        """What the spec has raised, if that is why the guest is gone."""
        return self.carrier.error

    def kill(self) -> None:
        """End the guest by force, if there is a way to do it."""
        self.carrier.kill()

    def statistics(self) -> ConsoleStatistics | None:
        """The state of the console; `None` if it is a stream of another kind than ours."""
        if isinstance(self.channel, (ConsoleStream, PolledStream)):
            return self.channel.statistics()
        return None

    def carried(self) -> tuple[int, int]:
        """Bytes that were sent on the console, and those of them that the device has got, as far as is known."""
        now = self.statistics()
        return (0, 0) if now is None else (now.rx.bytes_in, now.rx.bytes_out)

    async def close_by_force(self) -> None:
        """Close the console, whatever it still holds."""
        await aclose_by_force(self.channel)

    async def wait_gone(self) -> None:
        """Wait until the guest is gone, if the spec could also end it by force; its console was closed before."""
        host = self.carrier.host
        if isinstance(host, ProcessHost) and host.outlives_console:
            self.carrier.kill()
        if host.kill is not None:
            await self.carrier.wait_ended()

    @trio.lowlevel.enable_ki_protection
    async def close_behind(self) -> None:
        """Wait until nothing carries the guest any more, and close its console behind its last words."""
        await self.carrier.wait_ended()
        while True:
            before = self.progress()
            await trio.sleep(_LAST_WORDS_TIME)
            if before.waits and before == self.progress():
                await self.close_by_force()
                return


@final
class _Given(GuestSpec):
    """A guest that other code has started, and ends; only its console is ours."""

    def __init__(self, console: GuestDevice | trio.abc.Stream) -> None:
        self.console: Final = console
        self.handed_over = False

    def __repr__(self) -> str:
        return f"the guest at {self.console!r}"

    @trio.lowlevel.enable_ki_protection
    async def run(self, *, task_status: trio.TaskStatus[GuestHost]) -> None:
        self.handed_over = True
        task_status.started(GuestHost(self.console, explain=_explain))
        await trio.sleep_forever()


async def _explain() -> str:
    await trio.lowlevel.checkpoint()
    return "the other end is gone"


def spec_of(what: GuestSpec | trio.abc.Stream | ConsoleDevice | None) -> GuestSpec:
    """How to start a guest: what was given, or, for a console, a spec that has it. Call it last of all checks.

    Raises:
        TypeError, ValueError: it cannot be a guest, nor a console. It is unchanged.
        OSError: a descriptor of the console is not open. It was closed.
    """
    if what is None:
        return ProcessGuest()
    if isinstance(what, GuestSpec):
        return what
    try:
        return _Given(console_of(what))
    except TypeError as exc:
        raise TypeError(
            f"a guest is a GuestSpec such as ProcessGuest, a trio.abc.Stream or a device; {exc}"
        ) from None


@interrupt_safe
@asynccontextmanager
async def own_console(spec: GuestSpec) -> AsyncIterator[None]:
    """Close a console that was given, if the block ends before the console is used."""
    try:
        yield
    finally:
        if isinstance(spec, _Given) and not spec.handed_over:
            await see_through(partial(_close, spec))  # noqa: ASYNC102  (shields itself)


async def _close(spec: _Given, _patience: trio.CancelScope) -> None:
    await close_console(spec.console)


@interrupt_safe
@asynccontextmanager
async def booted_host(
    spec: GuestSpec, bootstrap: Bootstrap, launch_timeout: float, ready_timeout: float
) -> AsyncIterator[Host]:
    """Start a guest, open its console, and boot it; yields when the guest is ready."""
    async with AsyncExitStack() as stack:
        carrier = await stack.enter_async_context(carried(spec, launch_timeout))
        console = console_of(carrier.take_console())
        host = Host(carrier, await stack.enter_async_context(opened_console(console)))
        nursery = await stack.enter_async_context(hidden_nursery())
        nursery.start_soon(host.close_behind)
        try:
            since = trio.current_time()
            host.booted = await _boot(host, bootstrap, ready_timeout)
            if (machine := host.machine) is not None:
                seconds = {**machine.seconds, "ready": trio.current_time() - since}
                host.machine = replace(machine, seconds=seconds)
            yield host
        finally:
            nursery.cancel_scope.cancel()


async def _boot(host: Host, bootstrap: Bootstrap, seconds: float) -> Booted:
    watch = Stopwatch()
    error: Exception
    try:
        with trio.fail_after(seconds):
            return await boot(host.channel, bootstrap)
    except trio.TooSlowError:
        raise GuestLostError(f"the guest was not ready within {seconds:g} seconds{watch.note()}") from None
    except (trio.BrokenResourceError, trio.ClosedResourceError) as exc:
        error = exc
    before = "the console broke before the guest was ready"
    reason = error.reason if isinstance(error, GuestLostError) else before
    told = await explained(reason, host.explain)
    raise GuestLostError(told) from (host.cause() or error.__cause__)


async def end(
    tell: Callable[[], None], wait_ended: Callable[[], Awaitable[None]], host: Host, confirmations: Confirmations
) -> None:
    """The orderly part of the ending.

    The guest is told to shut down in any case. Its end counts as one more confirmation: if a guest has not
    confirmed the ends of processes, its own end is not waited for again. A guest that confirms has the whole grace
    to end. The time for ending it by force is kept for the steps after this.
    """
    tell()

    async def orderly(patience: trio.CancelScope) -> None:
        with patience:
            soon = trio.current_time() + _TELL_TIME
            with trio.move_on_at(max(confirmations.begin(_FORCE_TIME), soon)) as waiting:
                await wait_ended()
            if waiting.cancelled_caught:
                return
            confirmations.confirmed()
            # A guest that does not obey the frame, or cannot get it, ends when its console is at end of file.
            await aclose_quietly(host.channel)
            await host.wait_gone()

    # (If no time is left, the frame is written all the same: the console's ending delivers the queued bytes.)
    orderly_time = max(_TELL_TIME, confirmations.grace - _FORCE_TIME)
    await see_through(orderly, grace=orderly_time, hurried=CANCELLED_GRACE - _FORCE_TIME)
