import pytest

from next_ray.inspect.groups import by_group, module_group, module_layer


@pytest.mark.parametrize(
    ("name", "group", "layer"),
    [
        ("model.layers.3.self_attn.q_proj", "q", 3),
        ("model.layers.12.mlp.gate_proj", "gate", 12),
        ("transformer.h.0.attn.c_attn", "c_attn", 0),
        ("lm_head", "lm_head", None),
        ("model.embed_tokens", "embed", None),
    ],
)
def test_names(name, group, layer):
    assert (module_group(name), module_layer(name)) == (group, layer)


def test_groups_come_in_the_order_of_a_layer_and_unknown_ones_behind():
    found = by_group(["a.1.fc2", "a.1.v_proj", "a.1.fc1", "a.1.q_proj", "a.2.v_proj"])
    assert list(found.items()) == [("q", ["a.1.q_proj"]), ("v", ["a.1.v_proj", "a.2.v_proj"]), ("fc2", ["a.1.fc2"]), ("fc1", ["a.1.fc1"])]
