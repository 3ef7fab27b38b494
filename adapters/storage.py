"""What stores raise when they are full, slow or gone, told as errors of ours."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime

from adapters.errors import HeadstockError, StorageFull, Unavailable

_FULL = ("No space left on device", "Disk quota exceeded")


def is_full(error: BaseException) -> bool:
    """Tell whether it was for want of room. By its words: safetensors' own error has no number."""
    return any(words in str(error) for words in _FULL)


def with_zone(moment: datetime) -> datetime:
    """Return when something was stored; stores that name no zone mean UTC."""
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def is_refusal(error: BaseException) -> bool:
    """Tell whether a store does not let us in, which it won't by itself; boto's errors are known by their names."""
    return isinstance(error, PermissionError) or "Credentials" in type(error).__name__


@contextmanager
def telling_store(place: str) -> Iterator[None]:
    """Turn what a file system raises into errors of ours; what is not there is still a `FileNotFoundError`.

    Raises:
        StorageFull: it has no room.
        Unavailable: it does not answer, or refuses.
    """
    try:
        yield
    except (FileNotFoundError, HeadstockError):
        raise
    except (
        Exception
    ) as error:  # the many stores that fsspec knows have no root of their errors in common
        if is_full(error):
            raise StorageFull(f"'{place}' has no room left. Make some, and try again.") from error
        raise Unavailable(
            f"The store '{place}' could not be used: {type(error).__name__}: {str(error)[:300]}. Try again, and look "
            "at the store if it stays so."
        ) from error
