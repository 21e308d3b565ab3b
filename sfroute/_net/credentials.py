"""User name and password for a new connection: given once, or asked of the application's credential provider.

A provider may call a service over the network. So it has a time limit of its own, apart from the server's; it must not
block the event loop; and errors name it.

Who may touch it: only the event loop.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from redis.credentials import CredentialProvider

from .threads import BlockingQuestions

__all__ = ["Credentials", "CredentialsSource", "NoCredentials"]

Credentials = tuple[str, ...]
"""``()``, ``(password,)`` or ``(username, password)``."""


class NoCredentials(Exception):
    """The provider failed. The text names it, and repeats nothing of its own error.

    Attributes:
        passing: it took too long, and may answer next time.
    """

    def __init__(self, provider: str, what: str, *, passing: bool) -> None:
        super().__init__(f"the credential provider {provider} {what}")
        self.passing = passing


class CredentialsSource:
    """Where credentials come from. ``repr`` shows no secret.

    Args:
        options: redis-py's ``username``, ``password`` and ``credential_provider``.
        seconds: how long the provider may take.
    """

    def __init__(self, options: Mapping[str, Any] | None = None, seconds: float = 1.0) -> None:
        options = options or {}
        self._provider: Any = options.get("credential_provider")
        username, password = options.get("username"), options.get("password")
        self._given: Credentials = ()
        if username:
            self._given = (str(username), str(password or ""))
        elif password:
            self._given = (str(password),)
        self._seconds = seconds
        # One thread: a provider that hangs is called once, however many connections wait for it.
        self._blocking: BlockingQuestions[Any] = BlockingQuestions("sfroute-credentials", 1)

    @property
    def needed(self) -> bool:
        """False if there are no credentials to send."""
        return self._provider is not None or bool(self._given)

    async def get(self) -> Credentials:
        """The credentials for one connection. Asks each time, because a provider may rotate them.

        Raises:
            NoCredentials: the provider raised, took too long, or returned none.
        """
        provider = self._provider
        if provider is None:
            return self._given
        name = type(provider).__qualname__
        raised: str | None = None
        found: object = None
        bound = asyncio.timeout(self._seconds)
        try:
            async with bound:
                if _blocks(provider):
                    found = await self._blocking.ask(None, provider.get_credentials)
                else:
                    found = await provider.get_credentials_async()
        except Exception as error:  # noqa: BLE001 - it may raise anything
            raised = type(error).__name__
        # Out here, since the provider's own error may hold a secret: not even the context of ours may show it.
        if bound.expired():
            raise NoCredentials(name, f"did not answer within {self._seconds:g} s", passing=True)
        if raised is not None:
            raise NoCredentials(name, f"raised {raised}", passing=False)
        if not isinstance(found, (tuple, list)) or not 1 <= len(found) <= 2:
            raise NoCredentials(
                name, "returned neither (password,) nor (username, password)", passing=False
            )
        return tuple(map(str, found))


def _blocks(provider: Any) -> bool:
    """True if it has nothing but ``get_credentials``: redis-py's ``get_credentials_async`` calls that on the loop."""
    own = getattr(type(provider), "get_credentials_async", None)
    return own is None or own is CredentialProvider.get_credentials_async
