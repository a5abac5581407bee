import pytest

from next_ray import precision
from next_ray.config import Config
from next_ray.precision import cpu_multiplies_bfloat16, resolve_dtypes
from next_ray.settings import load_config


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("flags\t\t: fpu sse2 avx512f avx512_bf16 amx_tile", True),
        ("flags\t\t: fpu sse2 avx2 fma", False),
        ("Features\t: fp asimd bf16 i8mm", True),
        ("model name\t: made for bf16", False),
        ("", False),
    ],
)
def test_the_flags_of_the_cpu_tell(line: str, expected: bool) -> None:
    assert cpu_multiplies_bfloat16(f"processor\t: 0\n{line}\n") is expected


@pytest.mark.parametrize(("native", "device", "dtype"), [(True, "cpu", "bfloat16"), (False, "cpu", "float32"), (False, "gpu", "bfloat16")])
def test_auto_becomes_what_the_hardware_multiplies(monkeypatch: pytest.MonkeyPatch, native: bool, device: str, dtype: str) -> None:
    monkeypatch.setattr(precision, "cpu_multiplies_bfloat16", lambda: native)
    resolved = resolve_dtypes(Config(), device)
    assert (resolved.rollout.dtype, resolved.learner.dtype) == (dtype, dtype)


def test_a_format_that_was_asked_for_stays() -> None:
    config = load_config(None, ["rollout.dtype=float16", "learner.dtype=bfloat16"])
    resolved = resolve_dtypes(config, "cpu")
    assert (resolved.rollout.dtype, resolved.learner.dtype) == ("float16", "bfloat16")
