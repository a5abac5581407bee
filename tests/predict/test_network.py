import torch

from next_ray.predict.network import NextNetwork


def test_sizes_are_the_released_ones():
    """Two encoders D-256-D ReLU D-256-D and a decoder 2D-256-D ReLU D-256-D, counted by hand for D = 576."""
    d, h = 576, 256
    encoder = (d * h + h) + (h * d + d) + (d * h + h) + (h * d + d)
    decoder = (2 * d * h + h) + (h * d + d) + (d * h + h) + (h * d + d)
    network = NextNetwork(d, h, torch.Generator())
    assert sum(p.numel() for p in network.parameters()) == 2 * encoder + decoder
    assert network(torch.zeros(3, d), torch.zeros(3, d)).shape == (3, d)


def test_output_is_the_equation_by_hand():
    network = NextNetwork(5, 3, torch.Generator().manual_seed(0))
    g, local = torch.randn(4, 5, generator=torch.Generator().manual_seed(1)), torch.ones(4, 5)

    def part(layers, x):
        w = [p.detach() for p in layers.parameters()]
        x = torch.clamp((x @ w[0].T + w[1]) @ w[2].T + w[3], min=0)
        return (x @ w[4].T + w[5]) @ w[6].T + w[7]

    h = torch.cat([part(network.encode_global, g), part(network.encode_local, local)], dim=1)
    torch.testing.assert_close(network(g, local), part(network.decode, h))


def test_initialisation_is_seeded_uniform_and_leaves_the_global_generator_alone():
    before = torch.random.get_rng_state()
    first, second = (NextNetwork(64, 32, torch.Generator().manual_seed(3)) for _ in range(2))
    other = NextNetwork(64, 32, torch.Generator().manual_seed(4))
    assert torch.equal(before, torch.random.get_rng_state())
    weight, again, different = (n.get_parameter("encode_global.0.weight").detach() for n in (first, second, other))
    assert torch.equal(weight, again)
    assert not torch.equal(weight, different)
    assert weight.abs().max() <= 64**-0.5
    assert abs(float(weight.std()) - 64**-0.5 / 3**0.5) < 0.005
