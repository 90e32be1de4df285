"""
The way to AWS for one profile: credentials, regions, endpoints, retries. Hides botocore's session and its clients.

One botocore session a process, and one more where roles are assumed: each costs 0.14 s. Retries are said explicitly, as botocore's default changed in
2026. The launch client never retries by itself: a full zone is a server error (HTTP 500), and standard mode would ask it again blindly.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

import botocore.session
from botocore.config import Config
from botocore.credentials import ReadOnlyCredentials
from botocore.exceptions import BotoCoreError, ClientError
from botocore.loaders import create_loader

from gpulab import __version__
from gpulab.aws.errors import explained
from gpulab.aws.renewing import renewal
from gpulab.aws.replies import check_reply
from gpulab.aws.role_clients import AsRole, sign_with_the_calls_key
from gpulab.aws.roles import Role, RoleKey, assume
from gpulab.errors import GpulabError, WrongUsage

# https://docs.aws.amazon.com/sdkref/latest/guide/feature-retry-behavior.html
# A teacher reads in CloudTrail which calls were gpulab's.
_WHO = f"gpulab/{__version__}"
_PATIENT = Config(
    user_agent_extra=_WHO,
    retries={"mode": "standard", "total_max_attempts": 3},
    connect_timeout=5,
    read_timeout=20,
    max_pool_connections=20,
)
# Accounts that share a client are called this many at once.
_MANY = Config(max_pool_connections=32)
_ONCE = Config(
    user_agent_extra=_WHO,
    retries={"mode": "standard", "total_max_attempts": 1},
    connect_timeout=5,
    read_timeout=30,
)


class Cloud:
    """
    AWS, as one profile reaches it. Thread-safe; makes no call until a client is used.

    Args:
        aws_profile: Of the AWS configuration; `""` for AWS's own default.
        config_file: Instead of `~/.aws/config`; the profile's `endpoint_url` there leads elsewhere.
        credentials_file: Instead of `~/.aws/credentials`.
        now: This computer's clock, to tell a wrong clock from wrong credentials.
        is_on_ec2: Whether this computer is an EC2 instance. Elsewhere the metadata service is never asked: without credentials
            it would cost seconds before the error.
        role: Assumed at the first call, and again before it expires; then every client is the role's.
        via: The cloud whose credentials assume the role; all accounts that are reached through it share its clients.
        profile: Of gpulab, as `--profile` must name it in hints; `""` for the default one. A role's is that of `via`.
    """

    def __init__(
        self,
        *,
        aws_profile: str = "",
        config_file: Path | None = None,
        credentials_file: Path | None = None,
        now: Callable[[], datetime] | None = None,
        is_on_ec2: bool = False,
        role: Role | None = None,
        via: Cloud | None = None,
        profile: str = "",
    ) -> None:
        self._role, self._via = role, via
        self._named: str = via._named if via is not None else profile
        self._role_key: RoleKey | None = None
        self._profile = aws_profile
        self._files = {"config_file": config_file, "credentials_file": credentials_file}
        self.now = now or (lambda: datetime.now(UTC))
        self._is_on_ec2 = is_on_ec2
        self._session: botocore.session.Session | None = None
        self._role_session: botocore.session.Session | None = None
        self._clients: dict[tuple[str, str, bool, bool], Any] = {}
        self._lock = threading.RLock()

    def client(self, service: str, region: str, *, is_patient: bool = True) -> Any:
        """
        Return a client; the same one for the same arguments.

        Args:
            service: As botocore names it, `ec2`.
            is_patient: Whether botocore may repeat a failed call; not for launches.

        Raises:
            WrongUsage: The AWS configuration is broken.
            CredentialsInvalid: There are none.
        """
        if self._via is not None:
            shared = self._via._kept_client(service, region, is_patient=is_patient, for_roles=True)
            self._role_credentials()
            return AsRole(shared, self._role_credentials)
        return self._kept_client(service, region, is_patient=is_patient, for_roles=False)

    def pages(
        self, service: str, region: str, operation: str, *, doing: str, **parameters: Any
    ) -> Iterator[Mapping[str, Any]]:
        """
        Call a paginated operation, named as the client's method is, and yield its pages.

        Raises:
            GpulabError: As `explained` says, at whichever page fails.
        """
        client = self.client(service, region)
        with self.explained(doing):
            yield from client.get_paginator(operation).paginate(**parameters)

    def explained(self, doing: str) -> AbstractContextManager[None]:
        """Re-raise what goes wrong inside as our errors; `doing` completes "could not ..."."""
        return explained(
            doing,
            now=self.now,
            decode=self._decoded_action,
            renew=self._renewal,
            profile=self._named,
        )

    def access_key_id(self) -> str:
        """
        Return the id of the access key in use, to tell accounts apart in caches; it is not a secret.

        Raises:
            CredentialsInvalid: There are no credentials, or they cannot be read.
        """
        with self._lock:
            if self._role is not None:
                return str(self._role_credentials().access_key)
        with self.explained("read the AWS credentials"):
            found = self._open().get_credentials()
            if found is None:
                from botocore.exceptions import NoCredentialsError

                raise NoCredentialsError
            return str(found.get_frozen_credentials().access_key)

    def credentials_expire_at(self) -> datetime | None:
        """Return when temporary credentials end, if the source says so; aware UTC."""
        if self._role_key is not None:
            return self._role_key.expires_at
        with self.explained("read the AWS credentials"):
            found = self._open().get_credentials()
        moment = getattr(found, "_expiry_time", None)
        return moment.astimezone(UTC) if isinstance(moment, datetime) else None

    def _kept_client(self, service: str, region: str, *, is_patient: bool, for_roles: bool) -> Any:
        key = (service, region, is_patient, for_roles)
        with self._lock:
            if key not in self._clients:
                with self.explained(f"reach {service} in {region}"):
                    self._clients[key] = self._new_client(
                        service, region, is_patient=is_patient, for_roles=for_roles
                    )
            return self._clients[key]

    def _new_client(self, service: str, region: str, *, is_patient: bool, for_roles: bool) -> Any:
        config = _PATIENT if is_patient else _ONCE
        session = self._for_roles() if for_roles else self._open()
        client = session.create_client(
            service, region_name=region, config=config.merge(_MANY) if for_roles else config
        )
        # Before botocore's own handlers of single operations, which turn the text of a policy into a dict.
        client.meta.events.register("after-call.*.*", check_reply)
        return client

    def _role_credentials(self) -> ReadOnlyCredentials:
        """Return the role's key, renewed in time."""
        assert self._role is not None
        assert self._via is not None
        with self._lock:
            if self._role_key is None or self._role_key.is_old(self.now()):
                self._role_key = assume(self._via, self._role)
            return self._role_key.key

    def _open(self) -> botocore.session.Session:
        with self._lock:
            if self._session is None:
                self._session = self._new_session()
                if not self._is_on_ec2:
                    self._session.get_component("credential_provider").remove("iam-role")
            return self._session

    def _for_roles(self) -> botocore.session.Session:
        """The session whose clients all accounts share that are reached through this one."""
        with self._lock:
            if self._role_session is None:
                self._role_session = self._new_session()
                sign_with_the_calls_key(self._role_session)
            return self._role_session

    def _new_session(self) -> botocore.session.Session:
        session = botocore.session.Session(profile=self._profile or None)
        for name, path in self._files.items():
            if path is not None:
                session.set_config_variable(name, str(path))
        session.register_component("data_loader", _models(session.get_config_variable("data_path")))
        return session

    def _renewal(self, source: str) -> str:
        """Say how the credentials are renewed: a role's by those that assume it."""
        if self._via is not None:
            return self._via._renewal(source)
        if not source:
            try:
                source = getattr(self._open().get_credentials(), "method", "")
            except BotoCoreError:
                source = ""
        is_aws_file = self._files["credentials_file"] is None
        return renewal(
            source, aws_profile=self._profile, is_aws_file=is_aws_file, profile=self._named
        )

    def _decoded_action(self, encoded: str) -> str:
        """Ask STS which action an encoded message denies; empty when that is not allowed either."""
        import json

        try:
            reply = self.client("sts", "us-east-1").decode_authorization_message(
                EncodedMessage=encoded
            )
            return str(json.loads(reply["DecodedMessage"])["context"]["action"])
        except (ClientError, BotoCoreError, GpulabError, KeyError, TypeError, ValueError):
            return ""


def check_aws_profile(
    name: str, *, config_file: Path | None = None, credentials_file: Path | None = None
) -> None:
    """
    Refuse a profile that the AWS configuration does not have, before anything relies on it.

    Args:
        config_file, credentials_file: As for `Cloud`.

    Raises:
        WrongUsage: It has no such profile, or cannot be read.
    """
    files = {"config_file": config_file, "credentials_file": credentials_file}
    session = botocore.session.Session()
    for variable, path in files.items():
        if path is not None:
            session.set_config_variable(variable, str(path))
    with explained("read the AWS configuration"):
        known = session.available_profiles
    if name not in known:
        there = f"There is {', '.join(sorted(known))}" if known else "It has none yet"
        raise WrongUsage(
            f"the AWS configuration has no profile `{name}`",
            hint=f"{there}; `aws configure --profile {name}` makes it",
        )


@cache
def _models(data_path: str | None) -> Any:
    """Return botocore's reader of service models, one a process: EC2's model alone takes a quarter of a second to read."""
    return create_loader(data_path)


def is_ec2(vendor_file: Path = Path("/sys/devices/virtual/dmi/id/sys_vendor")) -> bool:
    """Whether this computer says it is an EC2 instance; false where it cannot be told."""
    try:
        return vendor_file.read_text(encoding="ascii").strip() == "Amazon EC2"
    except (OSError, UnicodeDecodeError):
        return False
