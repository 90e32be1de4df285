"""Our own token buckets: a class of three hundred in one account must not be told "too many calls"."""

from __future__ import annotations

import threading
from datetime import UTC, datetime, timedelta

from gpulab.fleets.pacing import LAUNCH, Bucket, Pace, Rate


class Clock:
    """Time that passes by sleeping only."""

    def __init__(self):
        self.at = datetime(2026, 9, 7, 11, tzinfo=UTC)
        self.slept = []

    def now(self):
        return self.at

    def sleep(self, seconds):
        self.slept.append(seconds)
        self.at += timedelta(seconds=seconds)


def test_a_few_go_at_once_and_then_less_than_two_a_second():
    """AWS allows five and two a second; ours leaves two and a fortieth to spare."""
    clock = Clock()
    bucket = Bucket(LAUNCH, now=clock.now, sleep=clock.sleep)

    for _ in range(300):
        bucket.take()

    took = (clock.at - datetime(2026, 9, 7, 11, tzinfo=UTC)).total_seconds()
    assert [] == [s for s in clock.slept if s > 0.53]
    assert 152 == round(took)
    assert took <= 1.1 * 147.5


def test_a_bucket_left_alone_fills_up_again_but_not_over():
    """An hour's rest does not allow a hundred at once."""
    clock = Clock()
    bucket = Bucket(Rate(2, 1.0), now=clock.now, sleep=clock.sleep)
    bucket.take()
    bucket.take()
    clock.at += timedelta(hours=1)

    for _ in range(3):
        bucket.take()

    assert [1.0] == clock.slept


def test_an_empty_bucket_of_aws_empties_ours():
    """Another program drains the account's bucket: the next launch waits instead of being refused again."""
    clock = Clock()
    bucket = Bucket(Rate(5, 2.0), now=clock.now, sleep=clock.sleep)

    bucket.empty()
    bucket.take()

    assert [0.5] == clock.slept


def test_threads_queue_up_each_with_its_own_turn():
    """Eight launches at once must not all see the same free token."""
    waits, lock = [], threading.Lock()
    start = datetime(2026, 9, 7, 11, tzinfo=UTC)

    def sleep(seconds):
        with lock:
            waits.append(round(seconds, 3))

    bucket = Bucket(Rate(2, 1.0), now=lambda: start, sleep=sleep)
    threads = [threading.Thread(target=bucket.take) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert [1.0, 2.0, 3.0, 4.0] == sorted(waits)


def test_regions_have_buckets_of_their_own():
    """AWS counts per account and region; a second region doubles the pace."""
    clock = Clock()
    pace = Pace(now=clock.now, sleep=clock.sleep)

    assert pace.bucket("us-east-1", LAUNCH) is pace.bucket("us-east-1", LAUNCH)
    assert pace.bucket("us-east-1", LAUNCH) is not pace.bucket("us-east-2", LAUNCH)
