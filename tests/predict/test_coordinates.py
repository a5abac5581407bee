import numpy as np

from next_ray.predict.coordinates import random_frame, recover, span


def test_what_was_visited_comes_back_exactly():
    rng = np.random.default_rng(0)
    visited = rng.normal(size=(12, 700))
    frame, basis = random_frame(700, 128, seed=1), span(visited, 64)
    assert basis.shape == (700, 12)
    np.testing.assert_allclose(basis.T @ basis, np.eye(12), atol=1e-7)
    x = rng.normal(size=12) @ visited
    np.testing.assert_allclose(recover(x @ frame, frame, basis), x, atol=1e-6 * float(np.linalg.norm(x)))


def test_frame_keeps_lengths_and_angles_about():
    rng = np.random.default_rng(1)
    x = rng.normal(size=(30, 1500))
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    y = x @ random_frame(1500, 128, seed=2)
    assert np.abs(y @ y.T - x @ x.T).max() < 0.45
    assert abs(np.mean(np.sum(y**2, axis=1)) - 1) < 0.1


def test_short_vectors_keep_their_entries():
    np.testing.assert_array_equal(random_frame(100, 128, seed=0), np.eye(100))


def test_frame_is_seeded():
    np.testing.assert_array_equal(random_frame(300, 16, seed=5), random_frame(300, 16, seed=5))
    assert not np.array_equal(random_frame(300, 16, seed=5), random_frame(300, 16, seed=6))


def test_span_drops_repeats_zeros_and_the_least_directions():
    rng = np.random.default_rng(2)
    x, y = rng.normal(size=(2, 50))
    assert span(np.stack([x, x, np.zeros(50)]), 10).shape == (50, 1)
    leading = span(np.stack([10 * x, 10 * x, y]), 1)
    assert abs(leading[:, 0] @ x) / np.linalg.norm(x) > 0.99
    assert span(np.zeros((3, 50)), 10).shape == (50, 0)
