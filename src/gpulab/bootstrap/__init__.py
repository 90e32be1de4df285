"""
Renders what an instance is born with: cloud-init user data within EC2's 16 KB, environments, compact locks.

Hides cloud-init and the lock files; refuses anything secret by having no place for it.
"""

from gpulab.bootstrap.environments import Environment, environment_names, load_environment
from gpulab.bootstrap.locks import Lock, parse_lock
from gpulab.bootstrap.spec import InstanceSpec, Keep
from gpulab.bootstrap.userdata import cloud_config, user_data

__all__ = [
    "Environment",
    "InstanceSpec",
    "Keep",
    "Lock",
    "cloud_config",
    "environment_names",
    "load_environment",
    "parse_lock",
    "user_data",
]
