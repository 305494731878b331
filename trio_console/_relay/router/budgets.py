"""How much the relay may keep for a client, and promise to the agent: the limits, held against the books."""

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
    """See the module. It changes nothing.

    Args:
        limits: what there may be.
        books: what there is.
        clients: all that are there, by their slots.
    """

    def __init__(self, limits: RouterLimits, books: Books, clients: Mapping[int, Client]) -> None:
        self._limits: Final = limits
        self._books: Final = books
        self._clients: Final = clients

    def window(self, client: Client, count: int, wanted: int | None) -> int:
        """Bytes of window for each of ``count`` new streams, out of what is left of the budgets."""
        limits, books = self._limits, self._books
        left = min(limits.client_budget - client.account.reserved, limits.total_budget - books.relay.reserved)
        window = max(limits.least_window, min(limits.window, left // (limits.share * count)))
        return window if wanted is None else max(1, min(window, wanted))

    def may_read(self, client: Client) -> bool:
        """Whether more should be read from a client's socket: not while too much of it waits for the agent.

        What a client says comes in one order, so credit that it gives for one session waits behind input for
        another. A client that counts credit for that input is read on as soon as the console has taken it. One
        that does not, and sends more than the agent takes, holds up its own sessions, and no other client's: to
        read on, its input would have to be kept without a bound, or dropped.
        """
        limits, account = self._limits, client.account
        return account.pending < limits.pending_budget and account.queued < limits.client_budget

    def overflows(self, client: Client) -> bool:
        """Whether more is kept for a client than for any client that reads its socket and gives credit.

        Windows bound data; this bounds the answers to what a client has asked without reading them, and what an
        agent says that nobody has asked for.
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
