"""The end of a run whose numbers are no longer finite: the last batch is kept for inspection, and the error says what to do."""

from __future__ import annotations

from next_ray.errors import NextRayError, TrainingError
from next_ray.ports import Archive
from next_ray.progress import Progress
from next_ray.types import TrainedBatch


async def out_of_numbers(archive: Archive, progress: Progress, batch: TrainedBatch) -> TrainingError:
    """Keep the batch of the step just made, and make the error that stops the run.

    A store that cannot take the batch does not hide what went wrong: the error says that too.
    """
    try:
        kept = f"The last batch is kept in {await archive.keep_batch(progress.step, batch)} (docs/reliability.md says what it holds)."
    except NextRayError as error:
        kept = f"The last batch could not be kept: {error}"
    first = progress.step - progress.nonfinite + 1
    steps = f"step {progress.step}" if first == progress.step else f"steps {first} to {progress.step}"
    goes_on = f"from checkpoint {progress.last_checkpoint}" if progress.last_checkpoint else "from the start"
    return TrainingError(
        f"Loss or gradient were not finite in {steps}, so that nothing could be learned. {kept} Most often the weights have grown out "
        "of bounds, which the log-probabilities there show too: lower learner.lr or learner.max_grad_norm, or set learner.dtype=float32; "
        f"an extreme algorithm.kl_coef or entropy_coef does it as well. The same command with such a change goes on {goes_on}."
    )
