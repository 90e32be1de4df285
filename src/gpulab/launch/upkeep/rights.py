"""The policies for this profile, and the ones that are published: the rights table with regions, instance types and owners filled in. Asks nobody."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from gpulab.model.instance import TAG_COURSE, TAG_OWNER
from gpulab.planning.catalogue import instance_types
from gpulab.planning.wishes import single_gpu_types
from gpulab.rights import roles
from gpulab.rights.policy import OF_THE_CALLER, Reach, policy
from gpulab.rights.table import Part
from gpulab.store.config import DEFAULT_REGIONS, Profile

# Commands that need rights beyond a student's.
_PARTS = {
    "init": Part.SETUP,
    "image": Part.IMAGES,
    "guard": Part.GUARD,
    "fleet": Part.TEACHER,
    "close": Part.TEACHER,
}


def least(
    profile: Profile, *, commands: Collection[str] = (), types: Collection[str] = ()
) -> dict[str, Any]:
    """
    Make the least policy with which a profile's commands work: its owner, its regions, its GPU.

    What a class is made of carries its students' owner ids, so whoever holds one reaches every owner's.

    Args:
        commands: Of gpulab; empty for all that students use.
        types: Instance types to launch; empty for every single GPU of the profile's kind.

    Raises:
        WrongUsage: Nothing is listed for one of the commands.
    """
    parts = {Part.STUDENT, *(_PARTS[c] for c in commands if c in _PARTS)}
    single = single_gpu_types(instance_types())
    named = [t for t in single if t.gpu_name.casefold() == profile.gpu.casefold()]
    wanted = tuple(types) or tuple(t.name for t in named or single)
    owner = "" if Part.TEACHER in parts else profile.owner or OF_THE_CALLER
    reach = Reach(owner, "", profile.regions, wanted)
    return policy(parts, reach, commands=commands)


def published() -> Mapping[str, dict[str, Any]]:
    """Make every policy that `docs/iam` holds, by file name."""
    known = instance_types()
    small = [t for t in known if t.name.startswith("t3.")]
    types = tuple(t.name for t in (*single_gpu_types(known), *small))
    anyone = Reach("", "", DEFAULT_REGIONS, types)
    caller = Reach(OF_THE_CALLER, "", DEFAULT_REGIONS, types)
    course = Reach("", "COURSE", DEFAULT_REGIONS, types, ("OWNER",))
    return {
        "own-account.json": policy([Part.STUDENT], anyone),
        "course-account.json": policy([Part.STUDENT], caller),
        "setup.json": policy([Part.SETUP], anyone),
        "images.json": policy([Part.IMAGES], anyone),
        "guard.json": policy([Part.GUARD], anyone),
        "teacher.json": policy([Part.TEACHER], anyone),
        "course-role.json": policy(
            [Part.STUDENT, Part.COURSE], course, commands=("fleet", "close")
        ),
        "instance-role.json": roles.work_role("gpulab-ACCOUNT-REGION", "OWNER"),
        "class-role.json": roles.class_role("gpulab-ACCOUNT-REGION", "course-COURSE"),
        "scheduler-role.json": roles.end_role(TAG_OWNER, "OWNER"),
        "course-scheduler-role.json": roles.end_role(TAG_COURSE, "COURSE"),
    }
