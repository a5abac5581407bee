"""The run's configuration: one frozen tree, every field described, unknown keys rejected.

The defaults are the embedded run: the tiny model on addition, on this machine, in a few minutes. Reading YAML and overrides is
`next_ray.settings`; this package only says what is valid. All sections can be imported from here:

    surroundings    run, model, store, evaluation, cluster, report
    data            data and its sources
    training        rollout, algorithm, learner
    rewards         reward
    extrapolation   extrapolation: predictor, gate, after_jump
    recovery        recovery: alarms
"""

from __future__ import annotations

from pydantic import model_validator

from next_ray.config.data import (
    ArithmeticSource,
    DataSection,
    FewShotFile,
    FewShotTurn,
    FileSource,
    MixtureEntry,
    MixtureSource,
    ReasoningGymSource,
)
from next_ray.config.extrapolation import ONLINE_METHODS, AfterJumpSection, ExtrapolationSection, GateSection, PredictorSection
from next_ray.config.recovery import AlarmSection, RecoverySection
from next_ray.config.rewards import RewardPart, RewardSection
from next_ray.config.section import Section
from next_ray.config.surroundings import ClusterSection, EvaluationSection, ModelSection, ReportSection, RunSection, StoreSection
from next_ray.config.training import AlgorithmSection, LearnerSection, LoraSection, RolloutSection


class Config(Section):
    """Everything one run needs."""

    run: RunSection = RunSection()
    model: ModelSection = ModelSection()
    data: DataSection = DataSection()
    rollout: RolloutSection = RolloutSection()
    reward: RewardSection = RewardSection()
    algorithm: AlgorithmSection = AlgorithmSection()
    learner: LearnerSection = LearnerSection()
    store: StoreSection = StoreSection()
    extrapolation: ExtrapolationSection = ExtrapolationSection()
    evaluation: EvaluationSection = EvaluationSection()
    cluster: ClusterSection = ClusterSection()
    recovery: RecoverySection = RecoverySection()
    report: ReportSection = ReportSection()

    @model_validator(mode="after")
    def _gpus_are_allowed(self) -> Config:
        plan = self.extrapolation
        if plan.enabled and plan.gpus_per_delta_worker > 0 and self.cluster.device == "cpu":
            raise ValueError(
                f"extrapolation.gpus_per_delta_worker={plan.gpus_per_delta_worker:g} asks for GPUs, and cluster.device=cpu "
                "keeps the run off them. Set it to 0, or cluster.device to auto or gpu."
            )
        return self

    @model_validator(mode="after")
    def _candidates_go_beside_full_weights(self) -> Config:
        others = sorted({method for method, _ in self.extrapolation.proposals} - {"next"})
        if self.learner.mode == "full" and self.extrapolation.enabled and others:
            raise ValueError(
                f"learner.mode=full: a running job proposes candidates of rank 1 only, which {others[0]!r} does not make. Set "
                "extrapolation.methods to [next], or try other methods on the finished run's checkpoints (python -m next_ray.extrapolate)."
            )
        return self

    @model_validator(mode="after")
    def _ahead_is_not_deterministic(self) -> Config:
        if self.rollout.max_staleness and self.run.deterministic:
            raise ValueError(
                f"rollout.max_staleness={self.rollout.max_staleness} and run.deterministic=true exclude each other: a run that resumes "
                "samples its first batches anew, with the adapter of the checkpoint. Set one of them to 0 or false."
            )
        return self

    @model_validator(mode="after")
    def _deterministic_runs_keep_their_engines(self) -> Config:
        if self.rollout.release_idle_s is not None and self.run.deterministic:
            raise ValueError(
                f"rollout.release_idle_s={self.rollout.release_idle_s:g} and run.deterministic=true exclude each other: every batch of "
                "a deterministic run waits for all engines. Set one of them to null or false."
            )
        return self

    @model_validator(mode="after")
    def _batches_divide(self) -> Config:
        mini = self.learner.mini_batch_prompts
        prompts = self.rollout.prompts_per_step
        if mini is not None and prompts % mini:
            raise ValueError(
                f"learner.mini_batch_prompts={mini} does not divide rollout.prompts_per_step={prompts}: "
                f"{prompts} = {prompts // mini} x {mini} + {prompts % mini}."
            )
        longest = self.data.max_prompt_tokens + self.rollout.max_response_tokens
        if self.learner.micro_batch_tokens < longest:
            raise ValueError(
                f"learner.micro_batch_tokens={self.learner.micro_batch_tokens} cannot hold one sequence of data.max_prompt_tokens + "
                f"rollout.max_response_tokens = {longest} tokens."
            )
        return self
