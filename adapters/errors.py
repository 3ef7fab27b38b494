"""Every error a user can meet. The HTTP status of a code is looked up in `service/errors.py` only.

HeadstockError
├── InvalidRequest            a row, a parameter or an option is wrong
│   └── TextTooLong           the text does not fit, and nobody allowed cutting it
├── NotFound                  an adapter, a version or an alias that is not there
├── Unauthorized              no valid API key
├── Forbidden                 the key may not do this
├── Conflict                  the change would break a promise already made
├── InvalidData               a file of examples can't be used
├── InvalidBundle             a bundle is damaged, incomplete or unsafe
│   └── BackboneMismatch      a bundle was made for another backbone
├── UnsupportedBackbone       a model that Headstock can't run yet
├── PredictionFailed          a row that ran and gave no usable numbers
├── DeadlineExceeded          a row that was not finished in the time it had
├── TooLarge                  more bytes than are taken
├── StorageFull               a disk or a store has no room left
├── RunFailed                 a training run that could not go on, such as one that diverged
├── RunPaused                 a training run that was stopped, with a checkpoint where there is one
├── PeerLost                  another process of the same fit is gone; the run can go on from its checkpoint
├── Overloaded                the queue is full; try again later
├── Unavailable               the engine is not there to answer
└── EnvironmentProblem        a port in use, a folder that can't be written, a missing package
"""

from __future__ import annotations


class HeadstockError(Exception):
    """Something a person can put right; the message says what, and what to do next.

    Args:
        message: what was wrong with the value in quotes, what would be right, what to do next.
        param: the field of the request that is at fault, if one is.
    """

    code = "error"

    def __init__(self, message: str, *, param: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param

    def __reduce__(self) -> tuple[object, ...]:
        # Errors cross from the engine's process to the API; param is keyword-only.
        return (_rebuild, (type(self), self.message, self.param))


def _rebuild(kind: type[HeadstockError], message: str, param: str | None) -> HeadstockError:
    return kind(message, param=param)


class InvalidRequest(HeadstockError):
    code = "invalid_request"


class TextTooLong(InvalidRequest):
    code = "text_too_long"


class NotFound(HeadstockError):
    code = "not_found"


class Unauthorized(HeadstockError):
    code = "unauthorized"


class Forbidden(HeadstockError):
    code = "forbidden"


class Conflict(HeadstockError):
    code = "conflict"


class InvalidData(HeadstockError):
    code = "invalid_data"


class InvalidBundle(HeadstockError):
    code = "invalid_bundle"


class BackboneMismatch(InvalidBundle):
    code = "backbone_mismatch"


class UnsupportedBackbone(HeadstockError):
    code = "unsupported_backbone"


class PredictionFailed(HeadstockError):
    code = "prediction_failed"


class StorageFull(HeadstockError):
    code = "storage_full"


class RunFailed(HeadstockError):
    code = "run_failed"


class RunPaused(HeadstockError):
    code = "run_paused"


class PeerLost(HeadstockError):
    code = "peer_lost"


class DeadlineExceeded(HeadstockError):
    code = "deadline_exceeded"


class TooLarge(HeadstockError):
    code = "too_large"


class Overloaded(HeadstockError):
    code = "overloaded"


class Unavailable(HeadstockError):
    code = "unavailable"


class EnvironmentProblem(HeadstockError):
    code = "environment"
