"Equation 12 against a double loop, and the ring against a deque."
from collections import deque
from math import exp, log

import pytest
import torch

from upl_reid.core import ConfigError, DataError
from upl_reid.components.memory import ClusterMemory, MemoryBank, cross_camera_info_nce, queue_size

DEVICES = ["cpu"] + (["cuda"] if torch.cuda.is_available() else [])


def naive_info_nce(anchors, labels, camids, keys, key_labels, key_camids, tau, weight=None, ignore_same_camera=False):
    "Equation 12 with lists and math.exp."
    total, mass = 0., 0.
    for i in range(len(anchors)):
        top = bottom = 0.
        for j in range(len(keys)):
            e = exp(sum(a*b for a, b in zip(anchors[i].tolist(), keys[j].tolist()))/tau)
            same = labels[i] == key_labels[j] and labels[i] != -1
            if same and camids[i] != key_camids[j]: top += e
            if not (ignore_same_camera and same and camids[i] == key_camids[j]): bottom += e
        if top:
            w = 1. if weight is None else weight[i].item()
            total, mass = total - w*log(top/bottom), mass + w
    return total/mass if mass else 0.


def case(seed, b=8, m=15, d=5, people=4, cameras=3, dtype=torch.float64):
    g = torch.Generator().manual_seed(seed)
    def unit(n): return torch.nn.functional.normalize(torch.randn(n, d, generator=g, dtype=dtype), dim=1)
    def draw(low, high, n): return torch.randint(low, high, (n,), generator=g)
    return unit(b), draw(-1, people, b), draw(0, cameras, b), unit(m), draw(-1, people, m), draw(0, cameras, m)


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("ignore", [False, True])
@pytest.mark.parametrize("weighted", [False, True])
def test_info_nce_is_equation_12(seed, ignore, weighted):
    args = case(seed)
    weight = torch.rand(8, generator=torch.Generator().manual_seed(seed)).double() if weighted else None
    got = cross_camera_info_nce(*args, .2, weight=weight, ignore_same_camera=ignore)
    assert got.item() == pytest.approx(naive_info_nce(*args, .2, weight, ignore), abs=1e-10)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_kind_and_place_of_the_result(device, dtype):
    args = [x.to(device) for x in case(1, dtype=dtype)]
    got = cross_camera_info_nce(*args, .1)
    assert got.dtype == dtype and got.device.type == device and got.shape == ()
    assert got.item() == pytest.approx(naive_info_nce(*case(1, dtype=dtype), .1),
                                       abs=1e-10 if dtype == torch.float64 else 1e-4)


@pytest.mark.parametrize("ignore", [False, True])
def test_gradients_in_both_modes(ignore):
    a, l, c, k, kl, kc = case(2)
    l[0] = 99  # an anchor without a positive must not disturb the others
    def fn(a, k): return cross_camera_info_nce(a, l, c, k, kl, kc, .3, ignore_same_camera=ignore)
    assert torch.autograd.gradcheck(fn, (a.requires_grad_(), k.requires_grad_()), check_forward_ad=True)


def test_functional_jvp_agrees_with_backward():
    a, l, c, k, kl, kc = case(3)
    along = torch.randn(a.shape, generator=torch.Generator().manual_seed(0), dtype=a.dtype)
    def fn(a): return cross_camera_info_nce(a, l, c, k, kl, kc, .1, ignore_same_camera=True)
    torch.testing.assert_close(torch.func.jvp(fn, (a,), (along,))[1], (torch.func.grad(fn)(a)*along).sum())


def test_anchors_without_a_positive_get_no_gradient():
    a, l, c, k, kl, kc = case(4)
    l[:3] = torch.tensor([-1, 99, -1])
    a.requires_grad_()
    cross_camera_info_nce(a, l, c, k, kl, kc, .1).backward()
    assert not a.grad[:3].any() and a.grad[3:].any()


@pytest.mark.parametrize("labels, key_labels, m, ignore", [
    ([5, 6], [7, 7, 8], 3, False),     # no other key of that label
    ([-1, -1], [-1, -1, -1], 3, True), # unlabelled is no label
    ([7, 7], [7, 7, 7], 3, True),      # right label, same camera: the whole row is dropped
    ([7, 7], [7, 7, 7], 3, False),
    ([7, 7], [], 0, False),            # empty memory
    ([], [7, 7, 7], 3, False),         # empty batch
])
def test_zero_with_a_gradient_without_any_positive(labels, key_labels, m, ignore):
    anchors = torch.eye(4)[:len(labels)].requires_grad_()
    def integers(x): return torch.tensor(x, dtype=torch.long)
    loss = cross_camera_info_nce(anchors, integers(labels), integers([1]*len(labels)), torch.eye(4)[:m],
                                 integers(key_labels), integers([1]*m), .07, ignore_same_camera=ignore)
    assert loss.item() == 0 and loss.requires_grad
    loss.backward()
    assert anchors.grad.shape == anchors.shape and not anchors.grad.any()


def test_zero_weights_give_zero_and_not_nan():
    args = case(5)
    args[0].requires_grad_()
    loss = cross_camera_info_nce(*args, .1, weight=torch.zeros(8))
    loss.backward()
    assert loss.item() == 0 and not args[0].grad.any()


def test_unlabelled_keys_repel():
    a, l, c, k, kl, kc = case(6)
    few = kl != -1
    assert few.any() and not few.all()
    assert cross_camera_info_nce(a, l, c, k, kl, kc, .1) > cross_camera_info_nce(a, l, c, k[few], kl[few], kc[few], .1)


def test_stable_at_a_tiny_temperature():
    args = case(7, dtype=torch.float32)
    args[0].requires_grad_()
    loss = cross_camera_info_nce(*args, 1e-4)
    loss.backward()
    assert loss.isfinite() and args[0].grad.isfinite().all()


def test_never_negative_and_order_of_keys_is_irrelevant():
    a, l, c, k, kl, kc = case(8)
    order = torch.randperm(15, generator=torch.Generator().manual_seed(1))
    loss = cross_camera_info_nce(a, l, c, k, kl, kc, .5)
    assert loss >= 0
    torch.testing.assert_close(loss, cross_camera_info_nce(a, l, c, k[order], kl[order], kc[order], .5))


@pytest.mark.parametrize("broken", [1, 2, 4, 5])
def test_lengths_that_do_not_fit(broken):
    args = list(case(9))
    args[broken] = args[broken][:-1]
    with pytest.raises(DataError, match="one label and one camid"): cross_camera_info_nce(*args, .1)


def test_one_weight_an_anchor():
    with pytest.raises(DataError, match="one weight an anchor"):
        cross_camera_info_nce(*case(9), .1, weight=torch.ones(1))


# the ring

@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("size, batches", [(1, [1, 1, 3]), (5, [2, 2, 2, 2]), (5, [5, 5]), (5, [12]), (5, [3, 12, 1]),
                                           (7, [0, 3, 0, 9, 2]), (64, [8]*20)])
def test_first_in_first_out(size, batches, device):
    bank, naive, count = MemoryBank(size, 3).to(device), deque(maxlen=size), 0
    labels = torch.arange(1000)*10
    for n in batches:
        index = torch.arange(count, count + n)
        features = torch.stack([index + .25, index + .5, index*2.], 1)
        bank.enqueue(features.to(device), index.to(device), (index % 4).to(device))
        naive.extend(zip(index.tolist(), features.tolist()))
        count += n
        got_features, got_labels, got_camids = bank.keys(labels)
        got = sorted(zip(got_labels.tolist(), got_features.tolist(), got_camids.tolist()))
        assert got == [(10*i, f, i % 4) for i, f in sorted(naive)] and len(bank) == len(naive)


def test_labels_are_looked_up_now():
    bank = MemoryBank(4, 2)
    index = torch.tensor([3, 0, 2])
    bank.enqueue(torch.rand(3, 2), index, torch.zeros(3, dtype=torch.long))
    for labels in (torch.tensor([4, 5, 6, 7]), torch.tensor([-1, 2, -1, 0])):
        assert bank.keys(labels)[1].tolist() == labels[index].tolist()


def test_empty_bank_has_no_keys():
    features, labels, camids = MemoryBank(4, 2).keys(torch.zeros(3, dtype=torch.long))
    assert features.shape == (0, 2) and labels.shape == (0,) and camids.shape == (0,)


def test_half_filled_bank_equals_its_contents():
    "Empty slots, all zeros, must not be in the denominator."
    a, l, c, k, kl, kc = case(1)
    bank = MemoryBank(40, 5).double()
    bank.enqueue(k, torch.arange(15), kc)
    torch.testing.assert_close(cross_camera_info_nce(a, l, c, *bank.keys(kl), .2),
                               cross_camera_info_nce(a, l, c, k, kl, kc, .2))


def test_stored_without_a_graph_and_copied():
    bank, x = MemoryBank(4, 2), torch.rand(2, 2, requires_grad=True)
    bank.enqueue(x*2, torch.arange(2), torch.arange(2))
    assert not bank.features.requires_grad
    y = torch.rand(2, 2); kept = y.clone()
    bank.enqueue(y, torch.arange(2), torch.arange(2))
    y.zero_()
    assert torch.equal(bank.features[2:], kept)


def test_enqueue_between_forward_and_backward_is_loud():
    bank = MemoryBank(4, 2)
    bank.enqueue(torch.eye(2), torch.arange(2), torch.tensor([0, 1]))
    anchor = torch.rand(1, 2, requires_grad=True)
    loss = cross_camera_info_nce(anchor, torch.tensor([0]), torch.tensor([1]), *bank.keys(torch.tensor([0, 0])), .1)
    bank.enqueue(torch.eye(2), torch.arange(2), torch.tensor([0, 1]))
    with pytest.raises(RuntimeError, match="inplace"): loss.backward()


@pytest.mark.parametrize("before", [0, 3, 5, 8])
def test_state_round_trip_is_exact_and_tensors_only(before):
    def fill(bank, n, start):
        for i in range(start, start + n):
            bank.enqueue(torch.full((1, 2), float(i)), torch.tensor([i]), torch.tensor([i % 3]))
    bank, again = MemoryBank(5, 2), MemoryBank(5, 2)
    fill(bank, before, 0)
    fill(again, 4, 50)  # must be forgotten
    state = {name: value.clone() for name, value in bank.state_dict().items()}
    assert all(isinstance(v, torch.Tensor) for v in state.values())
    again.load_state_dict(state)
    for b in (bank, again): fill(b, 3, before)
    assert len(again) == len(bank)
    for name, value in bank.state_dict().items(): assert torch.equal(value, again.state_dict()[name])


@pytest.mark.parametrize("features, index, camids",
                         [((2, 3), (2,), (2,)), ((2, 2), (1,), (2,)), ((2, 2), (2,), (3,)), ((2,), (2,), (2,))])
def test_shapes_that_do_not_fit(features, index, camids):
    bank = MemoryBank(4, 2)
    with pytest.raises(DataError, match="the memory takes"):
        bank.enqueue(torch.zeros(features), torch.zeros(index, dtype=torch.long), torch.zeros(camids, dtype=torch.long))
    assert len(bank) == 0


@pytest.mark.parametrize("size", [0, -3])
def test_size_below_one_is_refused(size):
    with pytest.raises(ConfigError, match="at least 1"): MemoryBank(size, 2)


# a vector for each cluster

def naive_update(centroids, features, labels, mu):
    "Equation 3 of CGC with lists, one image after the other, each result brought back to unit length."
    def unit(v): return [a/sum(b*b for b in v)**.5 for a in v]
    memory = [unit(row) for row in centroids]
    for f, y in zip(features, labels):
        if y >= 0: memory[y] = unit([mu*m + (1 - mu)*a for m, a in zip(memory[y], unit(f))])
    return memory


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("mu", [0., .1, .7, 1.])
def test_cluster_memory_follows_image_by_image(seed, mu, device):
    g = torch.Generator().manual_seed(seed)
    start, features = (torch.randn(n, 4, generator=g, dtype=torch.float64) for n in (5, 20))
    labels = torch.randint(-1, 4, (20,), generator=g)                  # cluster 4 has no image and stays
    memory = ClusterMemory(start.to(device), mu)
    memory.update(features.to(device), labels.to(device))
    want = torch.tensor(naive_update(start.tolist(), features.tolist(), labels.tolist(), mu), dtype=torch.float64)
    torch.testing.assert_close(memory.centroids.cpu(), want, atol=1e-12, rtol=0)


@pytest.mark.parametrize("tau", [.05, 1.])
def test_cluster_nce_is_equation_2_of_cgc(tau):
    g = torch.Generator().manual_seed(0)
    start, features = (torch.randn(n, 4, generator=g, dtype=torch.float64) for n in (5, 7))
    labels = torch.randint(0, 5, (7,), generator=g)
    def cos(u, v): return sum(a*b for a, b in zip(u, v))/(sum(a*a for a in u)*sum(b*b for b in v))**.5
    want = sum(-log(exp(cos(f, start[y].tolist())/tau)/sum(exp(cos(f, m)/tau) for m in start.tolist()))
               for f, y in zip(features.tolist(), labels.tolist()))/7
    logits = ClusterMemory(start, temperature=tau)(features)
    assert torch.nn.functional.cross_entropy(logits, labels).item() == pytest.approx(want, abs=1e-10)


def test_cluster_memory_gives_gradients_to_images_only_and_keeps_a_copy():
    start, x = torch.eye(3), torch.tensor([[.6, .8, 0.]], requires_grad=True)
    memory = ClusterMemory(start)
    assert not list(memory.parameters()) and set(memory.state_dict()) == {"centroids"} and len(memory) == 3
    loss = memory(x).logsumexp(1).sum()
    loss.backward()
    memory.update(x, torch.tensor([2]))                                # after backward: fine; its graph does not enter
    assert x.grad.abs().sum() > 0 and not memory.centroids.requires_grad and torch.equal(start, torch.eye(3))
    loss = memory(x).logsumexp(1).sum()
    memory.update(x, torch.tensor([0]))
    with pytest.raises(RuntimeError, match="inplace"): loss.backward() # before it: loud


def test_cluster_memory_refuses_what_does_not_fit():
    memory = ClusterMemory(torch.eye(3))
    for labels in ([3], [0, 1]):
        with pytest.raises(DataError, match="3 clusters"): memory.update(torch.ones(1, 3), torch.tensor(labels))
    memory.update(torch.zeros(0, 3), torch.zeros(0, dtype=torch.long))
    assert torch.equal(memory.centroids, torch.eye(3))
    for wrong in (dict(momentum=1.5), dict(temperature=0.)):
        with pytest.raises(ConfigError): ClusterMemory(torch.eye(3), **wrong)
    before = memory.centroids.clone()
    for features in (torch.ones(2, 1), torch.ones(2, 4), torch.ones(3)):      # one column would fit every width
        with pytest.raises(DataError, match="vectors of 3 dimensions"): memory(features)
        with pytest.raises(DataError, match="vectors of 3 dimensions"): memory.update(features, torch.zeros(2).long())
    assert torch.equal(memory.centroids, before)


@pytest.mark.parametrize("images, largest, share, want",
                         [(2700, 8192, .5, 1350), (16522, 8192, .5, 8192), (3, 8192, .1, 1), (2700, 65536, 64., 65536)])
def test_a_queue_is_no_longer_than_asked_and_than_its_share(images, largest, share, want):
    assert queue_size(images, largest, share) == want
