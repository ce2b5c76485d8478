"""The time that records of images and people carry."""

import contextlib
import datetime
import os


def record_time() -> datetime.datetime:
    """Now in UTC, or SOURCE_DATE_EPOCH (seconds since 1970) where the environment sets it to a time.

    Example:
        >>> record_time().tzinfo
        datetime.timezone.utc
    """
    epoch = os.environ.get("SOURCE_DATE_EPOCH", "")
    if epoch.isdecimal():
        with contextlib.suppress(ValueError, OverflowError, OSError):  # later than the year 9999
            return datetime.datetime.fromtimestamp(int(epoch), datetime.UTC)
    return datetime.datetime.now(datetime.UTC)
