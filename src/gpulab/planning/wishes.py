"""Which instance types meet a request. Refuses GPUs and types nobody knows, with near names."""

from __future__ import annotations

from collections.abc import Iterable

from gpulab.errors import Refused, WrongUsage
from gpulab.model.instance import LaunchRequest
from gpulab.model.market import InstanceType
from gpulab.model.nearest import did_you_mean

# The driver of AWS's base GPU image needs Turing or newer; its release notes list these families (July 2026).
# https://docs.aws.amazon.com/dlami/latest/devguide/aws-deep-learning-x86-base-gpu-ami-ubuntu-24-04.html
_WITH_DRIVER = frozenset(
    "g4dn g5 g6 gr6 g6e g7 p4d p4de p5 p5e p5en p6-b200 p6-b300".split()  # noqa: SIM905 - one line reads better
)


def types_for(request: LaunchRequest, types: Iterable[InstanceType]) -> tuple[InstanceType, ...]:
    """
    Choose the instance types that meet a request.

    A wish for a GPU means one whole GPU: four of them cost four times as much, so they are only taken when named by type.

    Args:
        request: Names a type, a GPU, or neither (any single GPU).
        types: Every known type.

    Returns:
        At least one type, sorted by name.

    Raises:
        WrongUsage: No type or GPU has that name; the hint names near ones.
        Refused: The type has a GPU that the images have no driver for.
    """
    known = sorted(types, key=lambda t: t.name)
    if request.instance_type is not None:
        return (_named(request.instance_type, known),)
    usable = list(single_gpu_types(known))
    if request.gpu is None:
        return tuple(usable)
    wanted = _plain(request.gpu)
    found = tuple(t for t in usable if _plain(t.gpu_name) == wanted)
    if not found:
        raise _no_such_gpu(request.gpu, known, usable)
    return found


def single_gpu_types(types: Iterable[InstanceType]) -> tuple[InstanceType, ...]:
    """Choose the types with one GPU that the images have a driver for, in the order given."""
    return tuple(t for t in types if t.gpus == 1 and _has_driver(t))


def gpu_names(types: Iterable[InstanceType]) -> tuple[str, ...]:
    """Name the GPUs that can be asked for singly, sorted."""
    return tuple(sorted({t.gpu_name for t in single_gpu_types(types)}))


def _named(name: str, known: list[InstanceType]) -> InstanceType:
    found = next((t for t in known if t.name == name.strip().lower()), None)
    if found is None:
        lists = "`gpulab prices` lists what there is"
        hint = did_you_mean(name, (t.name for t in known), otherwise=lists, at_least=0.75)
        raise WrongUsage(f"gpulab knows no instance type `{name}`", hint=hint)
    if found.gpus and not _has_driver(found):
        raise Refused(
            f"{found.name} has a {found.gpu_name}, and the images have no driver for it",
            hint="`--gpu T4` is the cheapest GPU with a driver",
        )
    return found


def _no_such_gpu(
    name: str, known: list[InstanceType], usable: list[InstanceType]
) -> WrongUsage | Refused:
    larger = [t for t in known if _plain(t.gpu_name) == _plain(name) and _has_driver(t)]
    if larger:
        smallest = min(larger, key=lambda t: (t.gpus, t.vcpus, t.name))
        return Refused(
            f"AWS sells no single {smallest.gpu_name}: {smallest.name} has {smallest.gpus}",
            hint=f"Ask for it by type: `--type {smallest.name}`",
        )
    names = gpu_names(usable)
    there_are = "There are " + ", ".join(names)
    hint = did_you_mean(name.upper(), names, otherwise=there_are, at_least=0.5)
    return WrongUsage(f"gpulab knows no GPU `{name}`", hint=hint)


def _plain(gpu: str) -> str:
    return "".join(c for c in gpu.lower() if c.isalnum()).removeprefix("nvidia")


def _has_driver(kind: InstanceType) -> bool:
    return kind.name.partition(".")[0] in _WITH_DRIVER
