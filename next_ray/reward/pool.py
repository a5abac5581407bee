"""Judging batches of completions in disposable processes: whatever a verifier does to its process costs one reward.

One thread serves all pipes. A process holds a short queue of items, so that it never waits for the next; its clock runs for
the oldest unanswered one. When it hangs or dies, that item is judged 0, the others go back to the batch, and a new process
takes its place.
"""

from __future__ import annotations

import json
import selectors
import signal
import time
from collections import Counter, deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from threading import Lock
from types import TracebackType

from next_ray.config import RewardSection
from next_ray.errors import ConfigError
from next_ray.reward.crew import Crew
from next_ray.reward.process import Request, VerifierProcess
from next_ray.reward.verifiers import EXACT, FAMILIES, PYTHON, family, load_unit
from next_ray.reward.worker import OUT_OF_MEMORY, RETIRED
from next_ray.types import Prompt, Verdict

QUEUE_LENGTH = 32
"""Items a process may hold; fewer near the end of a batch, so that a slow answer doesn't keep others waiting."""
GRACE_S = 10.0
"""How long a process that closed its pipe may take to leave its exit status."""


@dataclass(frozen=True)
class Judgement:
    """What an answer earns, whether it is correct (what gate and evaluation count), and how the verifier call ended.

    The reward is the weighted sum of the parts' 0 to 1, so it lies between the sum of the negative and that of the positive weights; one
    verifier alone gives 0 or 1 (a function what is between, too). An answer whose judging failed earns the least there is. Correct
    means that the first part gave 1.
    """

    reward: float
    verdict: Verdict
    is_correct: bool


class VerifierPool:
    """`config.workers` verifier processes, started at once. `score` may be called from any thread; it takes one batch at a time."""

    def __init__(self, config: RewardSection) -> None:
        self._config = config
        self._lock = Lock()
        self._closed = False
        self._verdicts: Counter[str] = Counter()
        self._crew = Crew(config)
        named = {config.deciding, *config.further}
        self.preload(named - {"auto"})

    def __enter__(self) -> VerifierPool:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    @property
    def counters(self) -> Mapping[str, int]:
        """Totals since the start: answers per verdict (`ok`, `timeout`, ...), processes `replaced` and, of these, `retired`."""
        totals = {verdict.value: self._verdicts[verdict.value] for verdict in Verdict}
        return totals | {name: self._crew.counters[name] for name in ("replaced", "retired")}

    @property
    def pids(self) -> tuple[int, ...]:
        """Ids of the present processes."""
        return tuple(process.pid for process in self._crew.processes)

    def preload(self, kinds: Iterable[str]) -> None:
        """Start importing what these verifiers need; returns at once, so that it happens beside the first rollouts."""
        kinds = sorted(kinds)
        if unknown := [kind for kind in kinds if family(kind) not in FAMILIES]:
            raise ConfigError(f"unknown verifier {unknown[0]!r}; {', '.join(FAMILIES)} exist (reward.verifier).")
        with self._lock:
            self._require_open()
            self._crew.preload({load_unit(kind) for kind in kinds})
            for process in self._crew.processes:
                process.flush()

    def score(self, items: Sequence[tuple[str, Prompt]]) -> list[Judgement]:
        """Judge completions against their prompts' references: each exactly once, results in the order given.

        Raises:
            ConfigError: a prompt names an unknown verifier, or processes cannot start within the limits.
        """
        self.preload({prompt.verifier for _, prompt in items})
        with self._lock:
            self._require_open()
            try:
                judgements = _Batch(self._crew, self._config, items).run()
            except BaseException:
                self._crew.renew()
                raise
            self._verdicts.update(judgement.verdict.value for judgement in judgements)
        return judgements

    def close(self) -> None:
        """End all processes. Idempotent."""
        with self._lock:
            self._closed = True
            self._crew.close()

    def _require_open(self) -> None:
        if self._closed:
            raise RuntimeError("the verifier pool is closed")


class _Batch:
    """One call of `score`: what is still to be sent and what has come back."""

    def __init__(self, crew: Crew, config: RewardSection, items: Sequence[tuple[str, Prompt]]) -> None:
        self._crew = crew
        self._further, self._weights = config.further, config.weights
        self._items = items
        self._waiting = deque(range(len(items)))
        self._judgements: dict[int, Judgement] = {}
        self._selector = selectors.DefaultSelector()
        self._writing: set[VerifierProcess] = set()

    def run(self) -> list[Judgement]:
        with self._selector:
            self._crew.revive()
            for process in self._crew.processes:
                self._selector.register(process.output, selectors.EVENT_READ, process)
            while len(self._judgements) < len(self._items):
                self._turn()
        return [self._judgements[index] for index in range(len(self._items))]

    def _turn(self) -> None:
        """Send what fits, wait for pipes or the next deadline, take replies, replace the late and the dead."""
        for process in self._crew.processes:
            self._feed(process)
            self._watch_input(process)
        timeout = min(process.deadline for process in self._crew.processes) - time.monotonic()
        for key, events in self._selector.select(max(0.0, timeout)):
            process: VerifierProcess = key.data
            if process not in self._crew.processes:
                continue  # buried a moment ago, on its other pipe's event
            if events & selectors.EVENT_READ:
                self._read(process)
            else:
                process.flush()
        for process in tuple(self._crew.processes):
            if process.deadline <= time.monotonic() and self._read(process) and process.deadline <= time.monotonic():
                self._bury(process, late=True, grace_s=0.0)

    def _feed(self, process: VerifierProcess) -> None:
        if len(process.unanswered) <= QUEUE_LENGTH // 2:
            fair = len(self._waiting) // (2 * len(self._crew.processes)) + 1
            for _ in range(min(QUEUE_LENGTH, fair) - len(process.unanswered)):
                if self._waiting:
                    self._send(process, self._waiting.popleft())
        if process.wants_to_write:
            process.flush()

    def _send(self, process: VerifierProcess, index: int) -> None:
        text, prompt = self._items[index]
        kinds = [prompt.verifier, *self._further]
        line = {"id": index, "kinds": kinds, "text": text, "answer": prompt.answer, "metadata": dict(prompt.metadata)}
        process.send(Request(index, prompt.verifier), line)

    def _watch_input(self, process: VerifierProcess) -> None:
        if process.wants_to_write and process not in self._writing:
            self._writing.add(process)
            self._selector.register(process.input, selectors.EVENT_WRITE, process)
        elif not process.wants_to_write and process in self._writing:
            self._writing.remove(process)
            self._selector.unregister(process.input)

    def _read(self, process: VerifierProcess) -> bool:
        """Take what has arrived; False when the process is gone and has been replaced."""
        lines = process.read()
        if lines is not None and all(self._take(process, line) for line in lines):
            return True
        self._bury(process, late=False, grace_s=GRACE_S if lines is None else 0.0)
        return False

    def _take(self, process: VerifierProcess, line: bytes) -> bool:
        """Use one reply; False when it isn't the one that is due, which only a process that was meddled with sends."""
        try:
            reply = json.loads(line)
            due = process.unanswered[0]
            if due.item is None:
                if "failed" in reply:
                    raise ConfigError(f"verifier {due.kind!r} cannot be loaded: {reply['failed']}. {_remedy(due.kind)}")
                if reply["loaded"] != due.kind:
                    return False
            else:
                verdict, rewards = Verdict(reply["verdict"]), [float(reward) for reward in reply["rewards"]]
                num = len(self._weights) if verdict is Verdict.OK else 0
                if reply["id"] != due.item or len(rewards) != num or not all(0.0 <= reward <= 1.0 for reward in rewards):
                    return False
                self._judge(due.item, rewards, verdict)
        except (ValueError, KeyError, TypeError, IndexError):
            return False
        process.unanswered.popleft()
        return True

    def _bury(self, process: VerifierProcess, late: bool, grace_s: float) -> None:
        """Judge the item at hand 0, give the others back, put a new process in place."""
        self._selector.unregister(process.output)
        if process in self._writing:
            self._writing.remove(process)
            self._selector.unregister(process.input)
        status = process.end(grace_s)
        fresh = self._crew.replace(process, status)
        unanswered = deque(process.unanswered)
        begun = late or status != RETIRED
        if begun and unanswered and (index := unanswered[0].item) is not None:
            unanswered.popleft()
            self._judge(index, [], _verdict(status, late))
        self._waiting.extendleft(request.item for request in reversed(unanswered) if request.item is not None)
        self._selector.register(fresh.output, selectors.EVENT_READ, fresh)

    def _judge(self, index: int, rewards: Sequence[float], verdict: Verdict) -> None:
        """Note the judgement of an item from the rewards of its parts; none when judging failed."""
        if index in self._judgements:
            raise AssertionError(f"item {index} was judged twice")
        if verdict is not Verdict.OK:
            self._judgements[index] = Judgement(sum(min(w, 0.0) for w in self._weights), verdict, False)
            return
        total = sum(weight * reward for weight, reward in zip(self._weights, rewards, strict=True))
        self._judgements[index] = Judgement(float(total), verdict, rewards[0] == 1.0)


def _remedy(kind: str) -> str:
    if family(kind) == PYTHON:
        return "Put the module's folder on PYTHONPATH on every machine, and check the name (reward.verifier, reward.parts)."
    return "Install its library, or raise reward.memory_mib."


def _verdict(status: int, late: bool) -> Verdict:
    if late or status == -signal.SIGXCPU:
        return Verdict.TIMEOUT
    return Verdict.MEMORY if status == OUT_OF_MEMORY else Verdict.CRASH


def check_functions(config: RewardSection, kinds: Iterable[str] = ()) -> None:
    """Import the functions that the configuration or `kinds` name, in a verifier process; raises `ConfigError` when that fails."""
    functions = {kind for kind in (config.deciding, *config.further, *kinds) if family(kind) == PYTHON}
    if functions:
        with VerifierPool(RewardSection(memory_mib=config.memory_mib, cpu_s=config.cpu_s)) as pool:
            pool.preload(functions)
            pool.score([("", Prompt("", (), "", EXACT))])
