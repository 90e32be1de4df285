"""What every action starts from: the profile, its folder, the way to AWS, the clock. Makes no call by itself."""

from __future__ import annotations

import hashlib
import random as random_module
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from typing import TYPE_CHECKING

from gpulab.launch.cache import Cache
from gpulab.store.config import Profile
from gpulab.store.home import Folder
from gpulab.store.journal import Journal
from gpulab.store.ledger import Ledger
from gpulab.store.notes import Notes

if TYPE_CHECKING:
    from gpulab.aws.session import Cloud
    from gpulab.remote.host import Host
    from gpulab.remote.target import SshTarget


@dataclass(frozen=True)
class Context:
    """
    The outside, as arguments.

    Attributes:
        random: Jitter only, no secrets.
        cidr: From where port 22 is open; `""` to ask Amazon for this computer's address.
        new_id: Makes launch ids; unique, at most 40 ASCII characters.
        connect: Opens an instance over ssh; for tests, another way.
        ask_address: Returns this computer's public address.
        open_cloud: Opens another account than the profile's own; it is called once.
        account_name: Short name of that account, since the key of an assumed role changes by the hour.
    """

    profile: Profile
    folder: Folder
    environment: Mapping[str, str]
    now: Callable[[], datetime]
    sleep: Callable[[float], None]
    random: random_module.Random
    cidr: str = ""
    new_id: Callable[[], str] = field(default=lambda: uuid.uuid4().hex)
    connect: Callable[[SshTarget], Host] | None = None
    ask_address: Callable[[], str] | None = None
    open_cloud: Callable[[], Cloud] | None = None
    account_name: str = ""

    @cached_property
    def cloud(self) -> Cloud:
        """The way to AWS; importing botocore costs a quarter of a second, so it happens here, not before."""
        if self.open_cloud is not None:
            return self.open_cloud()
        from gpulab.aws.session import Cloud, is_ec2

        return Cloud(
            aws_profile=self.profile.aws_profile,
            config_file=self.profile.aws_config_file,
            credentials_file=self.profile.aws_credentials_file,
            now=self.now,
            is_on_ec2=is_ec2(),
            profile=self.profile.option,
        )

    @cached_property
    def journal(self) -> Journal:
        """Launches, written before they are asked for."""
        return Journal(self.folder.journal)

    @cached_property
    def ledger(self) -> Ledger:
        """Facts about money."""
        return Ledger(self.folder.ledger)

    @cached_property
    def cache(self) -> Cache:
        """What AWS said a while ago."""
        return Cache(self.folder.cache / "aws.json", self.now)

    @property
    def notes(self) -> Notes:
        """What must not be forgotten about kept work."""
        return Notes(self.folder.notes)

    @cached_property
    def account(self) -> str:
        """A short name for the credentials in use, so that caches of two accounts never mix; not a secret."""
        if self.account_name:
            return self.account_name
        return hashlib.sha256(self.cloud.access_key_id().encode()).hexdigest()[:8]

    @property
    def owner(self) -> str:
        """Whose tags go on what we make; an opaque id, `me` before `gpulab init`."""
        return self.profile.owner or "me"

    def own_cidr(self) -> str:
        """
        Return from where port 22 is to be open.

        Raises:
            AwsError: Nobody named it and Amazon did not say.
            WrongUsage: What was named is no address range, or the whole internet.
        """
        from gpulab.aws.address import own_address
        from gpulab.aws.network import checked_cidr

        return checked_cidr(self.cidr or (self.ask_address or own_address)())

    def host(self, target: SshTarget) -> Host:
        """Open an instance over ssh; nothing is sent yet."""
        if self.connect is not None:
            return self.connect(target)
        from gpulab.remote.host import Host

        return Host(target)


def context_of(
    profile: Profile,
    folder: Folder,
    *,
    environment: Mapping[str, str],
    now: Callable[[], datetime],
    sleep: Callable[[float], None],
    random: random_module.Random,
    cidr: str = "",
) -> Context:
    """Make the context of one command; no call to AWS is made yet."""
    return Context(
        profile=profile,
        folder=folder,
        environment=environment,
        now=now,
        sleep=sleep,
        random=random,
        cidr=cidr,
    )
