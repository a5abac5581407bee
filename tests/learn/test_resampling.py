from next_ray.learn.packing import Versions, plan_update
from next_ray.learn.resampling import num_equal, pick_groups
from next_ray.types import GroupSize, Ref, SampleIndex, Scores, Shard


def shard(name, num):
    return Shard(Ref(name), tuple(GroupSize(2, (i + 1, i + 1), (0, 0), (False, False)) for i in range(num)))


UNEQUAL, SOLVED, FAILED = (0.0, 1.0), (1.0, 1.0), (0.0, 0.0)


def test_groups_with_a_signal_come_first_and_the_batch_keeps_its_size():
    rounds = [
        ([shard("a", 2), shard("b", 1)], Scores((SOLVED, UNEQUAL, FAILED), {"ok": 6})),
        ([shard("c", 2)], Scores((UNEQUAL, SOLVED), {"ok": 3, "timeout": 1})),
    ]
    shards, scores = pick_groups(rounds, 3)
    assert [(s.groups.value, s.places) for s in shards] == [("a", (0, 1)), ("c", (0,))]
    assert scores.rewards == (SOLVED, UNEQUAL, UNEQUAL)
    assert scores.verdicts == {"ok": 9, "timeout": 1}
    assert num_equal(scores.rewards) == 1


def test_scores_are_joined_in_their_order_and_what_is_correct_is_kept():
    parts = [Scores((UNEQUAL,), {"ok": 2}, correct=(SOLVED,)), Scores((FAILED, SOLVED), {"ok": 3, "crash": 1})]
    joined = Scores.joined(parts)
    assert joined.rewards == (UNEQUAL, FAILED, SOLVED) and joined.accuracy == (SOLVED, FAILED, SOLVED)
    assert joined.verdicts == {"ok": 5, "crash": 1} and Scores.joined([]).rewards == ()


def test_the_plan_points_at_the_groups_that_were_picked():
    rounds = [([shard("a", 3)], Scores((FAILED, SOLVED, UNEQUAL), {})), ([shard("b", 2)], Scores((SOLVED, UNEQUAL), {}))]
    shards, _ = pick_groups(rounds, 2)
    plan = plan_update(shards, [(1.0, -1.0), (1.0, -1.0)], Versions(0, 0), 1, None, 64, True)
    found = {index for micro in plan.mini_batches[0].per_rank[0] for index in micro.samples}
    assert found == {SampleIndex(0, 2, 0), SampleIndex(0, 2, 1), SampleIndex(1, 1, 0), SampleIndex(1, 1, 1)}
    again, _ = pick_groups([(shards, Scores((UNEQUAL, UNEQUAL), {}))], 1)
    assert [(s.groups.value, s.places) for s in again] == [("a", (2,))]
