"""Everything a command loads, loaded once before the forks: modules, botocore's service models, the fake ssh's one question."""

from __future__ import annotations

import importlib
import pkgutil
from typing import Any

from botocore.client import ClientCreator
from botocore.exceptions import UnknownServiceError

import gpulab
from gpulab.aws.session import Cloud
from gpulab.bootstrap.shipping import shipped_agent

_SERVICES = (
    *("ec2", "s3", "sts", "iam", "ssm", "scheduler", "service-quotas", "billing", "budgets"),
    *("freetier", "ce", "pricing", "sns", "cloudformation"),
)
_LEFT_OUT = ("gpulab.__main__", "gpulab.sandbox", "gpulab.dashboard", "gpulab.agent")


def warm() -> None:
    """Load what commands would each load by themselves; call it inside an open `Sandbox`."""
    for found in pkgutil.walk_packages(gpulab.__path__, "gpulab."):
        if not found.name.startswith(_LEFT_OUT):
            try:
                importlib.import_module(found.name)
            except ImportError:  # an extra that is not installed here
                continue
    shipped_agent(has_bucket=True)
    shipped_agent(has_bucket=False)
    _share("_load_service_model")
    _share("_create_client_class")
    cloud = Cloud()
    for service in _SERVICES:
        try:
            cloud.client(service, "us-east-1")
        except UnknownServiceError:
            continue


def _share(name: str) -> None:
    """Keep what botocore makes anew for each client: a model parsed again, a class with a method for each of EC2's seven hundred operations."""
    make, made = getattr(ClientCreator, name), dict[str, Any]()

    def kept(creator: Any, service: str, *args: Any, **more: Any) -> Any:
        if service not in made:
            made[service] = make(creator, service, *args, **more)
        return made[service]

    setattr(ClientCreator, name, kept)
