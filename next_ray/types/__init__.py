"""The nouns that travel between stages; all of them can be imported from here.

Shape legend: P prompts, G samples of a prompt (a group), T tokens, I/O in/out features, R rank.
Nothing here imports numpy at run time; arrays are named in the annotations only.
"""

from next_ray.types.adapter import BASE_VERSION, Adapter, LoraFactors, Weights
from next_ray.types.checkpoints import CheckpointKind, Manifest, NewCheckpoint, ObjectEntry
from next_ray.types.records import Accuracy, EvaluationResult, Fault, FaultEvent, JumpRecord, StepRecord
from next_ray.types.ref import Ref
from next_ray.types.rollout import (
    Completion,
    FinishReason,
    Group,
    GroupSize,
    Prompt,
    RolloutRequest,
    Sample,
    Sampling,
    Scores,
    Shard,
    Verdict,
)
from next_ray.types.training import FullPart, LearnerState, MicroBatch, MiniBatch, SampleIndex, UpdatePlan, UpdateResult
from next_ray.types.trajectory import (
    BacktestScore,
    Candidate,
    CheckpointTriplets,
    GateDecision,
    GateRow,
    ModuleTriplets,
    Proposal,
    ScreenedRow,
    Triplet,
)
