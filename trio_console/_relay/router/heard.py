"""What a frame of the agent says, as far as the router has to know it."""

from __future__ import annotations

import contextlib
import errno
from typing import TYPE_CHECKING, Final

from trio_console import _wire as wire
from trio_console._errors import ProtocolError

if TYPE_CHECKING:
    from trio_console._relay.router.books import Books
    from trio_console._relay.router.session import RelaySession, RelayStream

__all__ = ["class_of", "held_before", "note_end"]

#: The errors of close(2) by which it says that bytes written before are lost.
_LOST_BYTES: Final = (errno.EIO, errno.ENOSPC, errno.EDQUOT)


def class_of(frame: wire.Frame) -> type[wire.Message] | None:
    """The class of an agent's frame, by its type alone; `None` if it is unknown."""
    try:
        row = wire.MESSAGE_TYPES.get(wire.peek_type(frame.body))
    except ProtocolError:
        return None  # a frame of a newer agent, or a bad one: the client must judge it
    return None if row is None else row.cls


def held_before(session: RelaySession, cls: type[wire.Message] | None, frame: wire.Frame) -> RelayStream | None:
    """The stream whose held data is in front of a frame that may not overtake; `None` if there is none.

    The end of a stream waits for the data of that stream alone. If it overtook the data, the client would drop the
    data; and a client that reads only one of two streams must get the end of that one.
    """
    if cls is wire.ExecStreamEnded:
        with contextlib.suppress(ProtocolError):  # the client must judge it
            match wire.decode(frame):
                case wire.ExecStreamEnded(name):
                    return session.held_of(name)
    return session.held


def note_end(books: Books, session: RelaySession, frame: wire.Frame) -> None:
    """Note in the books what the guest has ended, opened or closed with the terminal frame of a session."""
    account = session.account
    books.end_process(account)
    if not account.handles and session.closes is None:
        return
    try:
        response = wire.decode(frame)
    except ProtocolError:
        return
    if isinstance(response, wire.FsResponse):
        if session.closes is not None and _is_closed(response):
            books.close_handle(account.client, session.closes)
        elif response.ok and isinstance(response.data, wire.ResultHandle):
            books.open_handle(account, response.data.value)


def _is_closed(response: wire.FsResponse) -> bool:
    """Whether a handle is closed, by the answer to its close.

    close(2) closes a descriptor also when it says that bytes written before are lost. After other errors the
    handle may still be open: it counts until a further close says that there is none.
    """
    text = response.error or ""
    lost = any(f"(os error {number})" in text for number in _LOST_BYTES)
    return response.ok or lost or text.startswith("invalid handle")
