"""Errors that a user can act on.

Every message says what was wrong, where, and what to do. All of them are picklable with their message alone, since they
cross process boundaries.
"""


class NextRayError(Exception):
    """A condition that stops the run and that its user can mend; printed as one paragraph, without a traceback."""


class ConfigError(NextRayError):
    """The configuration is not valid: unknown key, wrong type, impossible combination."""


class ModelError(NextRayError):
    """The model is missing, unreadable or not what the run expects."""


class DataError(NextRayError):
    """The prompts are missing, empty or malformed; names the file and line."""


class StoreError(NextRayError):
    """The checkpoint store is unreachable, refuses access or holds something unexpected."""


class LeaseError(StoreError):
    """Another driver holds the run, or this driver lost it."""


class CorruptCheckpointError(StoreError):
    """A committed object is missing, truncated or does not match its sha256."""


class PlacementError(NextRayError):
    """The cluster cannot give what the run asks for."""


class ActorLostError(NextRayError):
    """An actor died or its node went away; what it held is lost, what it was asked for was perhaps not done."""


class ObjectGoneError(ActorLostError):
    """What an actor had made was lost with its node; whoever was to use it is unharmed."""


class LearnerLostError(ActorLostError):
    """A rank of the learner gang died, and with it the gang: training goes on from the last committed checkpoint."""


class StoppedError(NextRayError):
    """The run was asked to end and did, with everything committed that it had done.

    `exit_code` is what the command ends with; `goes_on` says that only the learners are to move, and the run itself continues.
    """

    def __init__(self, message: str, exit_code: int = 130, goes_on: bool = False) -> None:
        super().__init__(message)
        self.exit_code, self.goes_on = exit_code, goes_on


class ProbeError(NextRayError):
    """Engine and learner disagree about the probabilities of the same tokens."""


class StaleCompletionError(NextRayError):
    """A completion was sampled from another adapter version than the learner expects."""


class TrainingError(NextRayError):
    """Training cannot go on: no update was made, or the numbers are no longer finite."""


class ExtrapolationError(NextRayError):
    """An extrapolator cannot work with the trajectory it was given."""


class CheckpointFormatError(NextRayError):
    """A checkpoint of another trainer cannot be used: unreadable, tampered with, or of a kind whose mathematics is another."""
