"""
One client for the roles of many accounts: a client takes a megabyte and a hundredth of a second, a class has three hundred accounts.

Every call is signed with the key that was put beside it; a call without one is never sent.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import Any

from botocore.credentials import (
    CredentialProvider,
    CredentialResolver,
    Credentials,
    ReadOnlyCredentials,
)
from botocore.session import Session

Key = Callable[[], ReadOnlyCredentials]

_key: ContextVar[ReadOnlyCredentials | None] = ContextVar("key", default=None)
# What these return makes calls of its own.
_GO_ON = ("get_paginator", "paginate")


def sign_with_the_calls_key(session: Session) -> None:
    """Let the clients of a session be used through `AsRole` only."""
    session.register_component("credential_provider", CredentialResolver([_Provider()]))


class AsRole:
    """
    A client, or one of its paginators, whose every call is signed with one role's key.

    Args:
        target: Of a session that `sign_with_the_calls_key` has prepared.
        key: Asked before each call, so that a key is renewed in time.
    """

    def __init__(self, target: Any, key: Key) -> None:
        self._target = target
        self._key = key

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._target, name)
        if not callable(found):
            return found

        def call(*arguments: Any, **parameters: Any) -> Any:
            answer = self._signed(lambda: found(*arguments, **parameters))
            return AsRole(answer, self._key) if name in _GO_ON else answer

        return call

    def __iter__(self) -> Iterator[Any]:
        """Yield the pages of a paginator."""
        pages, over = iter(self._target), object()
        while (page := self._signed(lambda: next(pages, over))) is not over:
            yield page

    def _signed(self, call: Callable[[], Any]) -> Any:
        token = _key.set(self._key())
        try:
            return call()
        finally:
            _key.reset(token)


class _KeyOfTheCall(Credentials):
    """Credentials that are another's in each call."""

    def __init__(self) -> None:
        super().__init__("of the call", "", None)

    def get_frozen_credentials(self) -> ReadOnlyCredentials:
        """Return the key that was put beside this call."""
        key = _key.get()
        if key is None:
            raise RuntimeError("a call for a role's account without the role's key")
        return key


class _Provider(CredentialProvider):
    METHOD = "gpulab-role"

    def load(self) -> Credentials:
        """Return the credentials of whichever call is made."""
        return _KeyOfTheCall()
