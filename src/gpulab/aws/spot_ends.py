"""When spot instances ended that EC2 does not show any more: their requests are kept for longer. Guesses nothing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from gpulab.aws.session import Cloud
from gpulab.model import fact
from gpulab.model.fact import Fact, Source
from gpulab.model.timeline import EndedBy

# https://docs.aws.amazon.com/AWSEC2/latest/APIReference/API_DescribeInstances.html : so many values in one filter.
_MOST_VALUES = 200


def ends_of(cloud: Cloud, region: str, instance_ids: Sequence[str]) -> tuple[Fact, ...]:
    """
    Say when and by whom spot instances ended, as far as AWS still remembers their requests: four hours after their end.

    Args:
        instance_ids: Of one region; those on demand have no request, and no answer.

    Raises:
        GpulabError: AWS did not answer.

    Source:
        https://docs.aws.amazon.com/AWSEC2/latest/APIReference/API_DescribeSpotInstanceRequests.html (2026-11-23)
    """
    rows = (row for chosen in _some(instance_ids) for row in _requests(cloud, region, chosen))
    return tuple(
        fact.ended(
            row["InstanceId"],
            at=row["Status"]["UpdateTime"],
            by=_by(row["Status"]["Code"]),
            reason=row["Status"]["Code"],
            source=Source.AWS,
        )
        for row in rows
        if str(row["Status"]["Code"]).startswith("instance-terminated-")
    )


def _some(ids: Sequence[str]) -> Iterator[list[str]]:
    for first in range(0, len(ids), _MOST_VALUES):
        yield list(ids[first : first + _MOST_VALUES])


def _requests(cloud: Cloud, region: str, ids: list[str]) -> Iterator[Mapping[str, Any]]:
    pages = cloud.pages(
        "ec2",
        region,
        "describe_spot_instance_requests",
        doing=f"read the spot requests in {region}",
        Filters=[{"Name": "instance-id", "Values": ids}],
    )
    return (row for page in pages for row in page["SpotInstanceRequests"])


def _by(code: str) -> EndedBy:
    return EndedBy.USER if code == "instance-terminated-by-user" else EndedBy.AWS
