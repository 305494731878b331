"""The bytes that the relay may keep for a client and promise to the agent: the limits, compared with the books."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, final

if TYPE_CHECKING:
    from collections.abc import Mapping

    from trio_console._relay.router.books import Books
    from trio_console._relay.router.clients import Client
    from trio_console._relay.router.limits import RouterLimits

__all__ = ["Budgets"]


@final
class Budgets:
    """Compares the books with the limits, and changes nothing.

    Args:
        limits: the bounds of the sums.
        books: the sums.
        clients: the connected clients by their slots.
    """

    def __init__(self, limits: RouterLimits, books: Books, clients: Mapping[int, Client]) -> None:
        self._limits: Final = limits
        self._books: Final = books
        self._clients: Final = clients

    def window(self, client: Client, count: int, wanted: int | None) -> int:
        """The window, in bytes, of each of ``count`` new streams, out of the rest of the budgets."""
        limits, books = self._limits, self._books
        left = min(limits.client_budget - client.account.reserved, limits.total_budget - books.relay.reserved)
        window = max(limits.least_window, min(limits.largest_window, left // (limits.rest_divisor * count)))
        return window if wanted is None else max(1, min(window, wanted))

    def may_read(self, client: Client) -> bool:
        """Whether the client's socket may be read: not while too many of its bytes wait for the agent.

        A client's frames come in one order, so its credit for one session waits behind its input for another. If
        the client counts credit for that input, reading goes on as soon as the console has taken it. If it does
        not, and sends more than the agent takes, it pauses its own sessions, and no other client's: to read on,
        the relay would have to keep its input without a bound, or drop it.
        """
        limits, account = self._limits, client.account
        return account.pending < limits.pending_budget and account.queued < limits.client_budget

    def overflows(self, client: Client) -> bool:
        """Whether more bytes are kept for a client than for any client that reads its socket and gives credit.

        The windows bound data. This bounds the answers to requests of a client that does not read, and the frames
        that an agent sends without a request.
        """
        limits = self._limits
        kept = client.kept_size
        budget = max(limits.client_budget, client.account.reserved)
        if kept <= budget:
            return False
        return kept > budget + limits.answers_budget or (
            sum(other.kept_size for other in self._clients.values())
            > max(limits.total_budget, self._books.relay.reserved) + limits.answers_budget
        )
