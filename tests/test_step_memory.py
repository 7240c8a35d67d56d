"""What a training step holds: activations saved for the backward, and the most that is alive at a time."""

import torch
from step_memory import Alive, held_bytes, peak_bytes, saved_bytes


def test_saved_bytes_are_those_of_the_formula():
    net = torch.nn.Sequential(torch.nn.Linear(8, 4))
    inputs = torch.randn(5, 8, requires_grad=True)
    # linear keeps its input, which no op has made, and exp its output
    loss = 4
    assert saved_bytes(lambda: net(inputs).exp().sum()) == 4 * 5 * 4 + loss


def test_the_peak_is_what_lives_at_a_time():
    given = torch.zeros(100)

    def step():
        first = given + 1
        second = first.view(10, 10) * 2
        del first
        second.add_(1)
        return second.sum()

    assert peak_bytes(step, 'cpu') == 2 * 400


def test_views_and_changes_in_place_are_no_new_tensors():
    with Alive() as alive:
        made = torch.zeros(100)
        assert alive.now == 400
        part = made[:10]
        part.add_(1)
        assert alive.now == 400
        del made
        assert alive.now == 400  # the view holds all of it
        del part
    assert (alive.now, alive.peak) == (0, 400)


def test_a_backward_counts():
    weight = torch.zeros(1000, requires_grad=True)
    with Alive() as alive:
        (weight * 2).sum().backward()
    assert alive.now == 4000  # the gradient
    assert alive.peak > alive.now  # the product as well, or the sum


def test_training_holds_weights_gradients_buffers_and_the_state_of_the_optimizer():
    net = torch.nn.Sequential(torch.nn.Linear(10, 5, bias=False), torch.nn.BatchNorm1d(5, affine=False))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    weight, buffers = 10 * 5 * 4, 2 * 5 * 4 + 8
    assert held_bytes(net, optimizer) == weight + buffers
    net(torch.randn(3, 10)).sum().backward()
    assert held_bytes(net, optimizer) == 2 * weight + buffers
    optimizer.step()
    assert held_bytes(net, optimizer) == 3 * weight + buffers
    optimizer.zero_grad()
    assert held_bytes(net, optimizer) == 2 * weight + buffers
