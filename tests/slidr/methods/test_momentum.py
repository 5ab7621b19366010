"""The slow copy of a network, and the queue of its keys."""

import torch
from torch import nn

from slidr.methods.momentum import MomentumCopy, Queue
from slidr.training import distributed


def network() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))


def test_a_copy_follows_by_its_parameters_alone():
    fast = network()
    slow = MomentumCopy(fast)
    assert all(not p.requires_grad for p in slow.parameters()) and all(p.requires_grad for p in fast.parameters())
    before = {name: value.clone() for name, value in slow.network.state_dict().items()}
    fast(torch.randn(5, 3))  # its running statistics move
    with torch.no_grad():
        for p in fast.parameters():
            p += torch.randn_like(p)
    slow.follow(fast, 0.9)
    parameters = dict(fast.named_parameters())
    for name, value in slow.network.state_dict().items():
        expected = 0.9 * before[name] + 0.1 * parameters[name] if name in parameters else before[name]
        assert torch.allclose(value, expected), name


def test_a_copy_has_no_graph_and_running_statistics_of_its_own():
    fast = network()
    slow = MomentumCopy(fast)
    out = slow.train()(torch.randn(5, 3, requires_grad=True))
    assert not out.requires_grad
    assert slow.network[1].num_batches_tracked == 1 and fast[1].num_batches_tracked == 0
    assert set(distributed.running_statistics(slow)) == {
        "network.1.running_mean", "network.1.running_var", "network.1.num_batches_tracked"
    }  # fmt: skip


def test_a_queue_begins_with_unit_noise():
    torch.manual_seed(0)
    queue = Queue(2000, 16)
    assert torch.allclose(queue.keys.norm(dim=1), torch.ones(2000), atol=1e-5)
    assert queue.keys.mean(0).abs().max() < 0.05
    assert set(queue.state_dict()) == {"keys", "place"} and not list(queue.parameters())


def test_the_newest_keys_take_the_place_of_the_oldest():
    queue, twin, place = Queue(5, 2), None, 0
    twin = queue.keys.clone()
    for n in (2, 2, 2, 0, 1, 5, 3, 13):  # wraps, an empty batch, one that is longer than the queue
        keys = torch.randn(n, 2)
        queue.push(keys)
        for key in keys:
            twin[place] = key
            place = (place + 1) % 5
        assert torch.equal(queue.keys, twin) and int(queue.place) == place


def test_keys_of_all_processes_come_in_the_order_of_their_ranks(monkeypatch):
    theirs = torch.full((1, 2), 7.0)
    monkeypatch.setattr(distributed, "gathered", lambda rows: (torch.cat((rows, theirs)), 0))
    queue = Queue(4, 2)
    queue.push(torch.ones(2, 2))
    assert queue.keys[:3].tolist() == [[1, 1], [1, 1], [7, 7]] and int(queue.place) == 3
