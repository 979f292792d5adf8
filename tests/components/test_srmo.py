"The meta-gradient against finite differences and separate backward passes; the optimizer against a loop over floats."
from math import exp, log, sqrt

import pytest
import torch
from torch import nn
from torch.func import functional_call

from upl_reid.core import ConfigError
from upl_reid.components.losses import soft_cross_entropy, supervised_contrastive, weighted_triplet
from upl_reid.components.memory import cross_camera_info_nce
from upl_reid.components.srmo import SRMO, entropy_slope, gradient_at, loss_slopes, meta_gradient

DEVICES = ["cpu"] + (["cuda"] if torch.cuda.is_available() else [])


class TinyBlock(nn.Module):
    "A transformer block with torch's fused attention, pooling and a classifier."
    def __init__(self, d=8, heads=2, classes=3):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(d), nn.LayerNorm(d)
        self.qkv, self.out = nn.Linear(d, 3*d), nn.Linear(d, d)
        self.mlp = nn.Sequential(nn.Linear(d, 2*d), nn.GELU(), nn.Linear(2*d, d))
        self.head, self.unused, self.heads = nn.Linear(d, classes), nn.Parameter(torch.ones(2)), heads

    def forward(self, x):
        b, t, d = x.shape
        q, k, v = self.qkv(self.norm1(x)).view(b, t, 3, self.heads, d//self.heads).permute(2, 0, 3, 1, 4)
        x = x + self.out(nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, t, d))
        f = nn.functional.normalize((x + self.mlp(self.norm2(x))).mean(1), dim=1)
        return f, self.head(f)


def problem(dtype=torch.float64, device="cpu"):
    "All real losses on one small block: parameters, losses function, meta function."
    with torch.random.fork_rng():
        torch.manual_seed(0)
        block = TinyBlock().to(device, dtype)
        x, meta_x = torch.randn(12, 5, 8), torch.randn(8, 5, 8)
        keys = nn.functional.normalize(torch.randn(10, 8), dim=1)
        soft, weight = torch.randn(12, 3).softmax(1), torch.rand(12)
    x, meta_x, keys, soft, weight = (t.to(device, dtype) for t in (x, meta_x, keys, soft, weight))
    labels, camids = (torch.arange(12, device=device) % 3), torch.arange(12, device=device) % 2
    key_labels, key_camids = torch.arange(10, device=device) % 3, torch.arange(10, device=device) % 2

    def losses_fn(p):
        f, logits = functional_call(block, p, (x,))
        return torch.stack([soft_cross_entropy(logits, soft, weight), weighted_triplet(f, labels, weight, 1.),
                            cross_camera_info_nce(f, labels, camids, keys, key_labels, key_camids, .5)])

    def meta_fn(p):
        return supervised_contrastive(functional_call(block, p, (meta_x,))[0], torch.arange(8, device=device) % 4, .5)
    return dict(block.named_parameters()), losses_fn, meta_fn


def looped_gradients(losses_fn, params):
    "One backward pass for each loss."
    leaves = {k: v.detach().requires_grad_() for k, v in params.items()}
    losses = losses_fn(leaves)
    return [dict(zip(leaves, torch.autograd.grad(l, leaves.values(), retain_graph=True, materialize_grads=True)))
            for l in losses]


def test_slopes_are_inner_products_with_separate_backward_passes():
    params, losses_fn, _ = problem()
    g = torch.Generator().manual_seed(5)
    direction = {k: torch.randn(v.shape, generator=g, dtype=v.dtype) for k, v in params.items()}
    want = [sum((direction[k]*grad[k]).sum() for k in params) for grad in looped_gradients(losses_fn, params)]
    got = loss_slopes(losses_fn, params, direction)
    torch.testing.assert_close(got, torch.stack(want).detach(), rtol=1e-9, atol=1e-12)
    assert not got.requires_grad

def test_losses_that_no_parameter_moves_have_slope_zero():
    params, losses_fn, _ = problem()
    zero = torch.zeros(2, dtype=torch.float64)
    assert torch.equal(loss_slopes(lambda p: zero + 3, params, params), zero)
    partly = loss_slopes(lambda p: torch.stack([losses_fn(p)[0], zero[0]]), params, params)
    assert partly[0] != 0 and partly[1] == 0


@pytest.mark.parametrize("scales", [(1., 1., 1.), (.2, 3., 0.)])
def test_meta_gradient_is_the_finite_difference_of_the_whole_step(scales):
    params, losses_fn, meta_fn = problem()
    lr, weights = .5, torch.tensor(scales, dtype=torch.float64)
    gradients = looped_gradients(losses_fn, params)

    def after_step(w):
        return meta_fn({k: v.detach() - lr*sum(w[i]*gradients[i][k] for i in range(3)) for k, v in params.items()})
    got, meta_loss = meta_gradient(losses_fn, meta_fn, params, weights, lr)
    h = 1e-5
    for i in range(3):
        step = torch.zeros(3, dtype=torch.float64); step[i] = h
        assert got[i].item() == pytest.approx(((after_step(weights + step) - after_step(weights - step))/(2*h)).item(),
                                              rel=1e-6, abs=1e-9)
    torch.testing.assert_close(meta_loss, after_step(weights).detach())


def test_the_two_points_differ_by_the_curvature_and_agree_for_small_steps():
    params, losses_fn, meta_fn = problem()
    weights = torch.ones(3, dtype=torch.float64)
    def pair(lr): return [meta_gradient(losses_fn, meta_fn, params, weights, lr, at)[0]/lr for at in ("step", "start")]
    far, near = pair(.5), pair(1e-6)
    assert (far[0] - far[1]).abs().max() > 1e-3
    torch.testing.assert_close(*near, rtol=1e-3, atol=1e-6)
    torch.testing.assert_close(far[1], near[1], rtol=1e-9, atol=1e-12)  # at the start the step size is only a factor


def test_meta_loss_at_the_start_is_that_of_the_parameters():
    params, losses_fn, meta_fn = problem()
    value = meta_gradient(losses_fn, meta_fn, params, torch.ones(3).double(), .1, "start")[1]
    torch.testing.assert_close(value, meta_fn(params).detach())


@pytest.mark.parametrize("device", DEVICES)
def test_single_precision_follows(device):
    params, losses_fn, meta_fn = problem()
    want = meta_gradient(losses_fn, meta_fn, params, torch.ones(3).double(), .1)[0]
    params, losses_fn, meta_fn = problem(torch.float32, device)
    got = meta_gradient(losses_fn, meta_fn, params, torch.ones(3, device=device), .1)[0]
    assert got.dtype == torch.float32 and got.device.type == device
    torch.testing.assert_close(got.double().cpu(), want, rtol=2e-3, atol=1e-5)


def test_nothing_is_changed_on_the_way():
    params, losses_fn, meta_fn = problem()
    before = {k: v.detach().clone() for k, v in params.items()}
    weights = torch.ones(3, dtype=torch.float64, requires_grad=True)
    for _ in range(2): first = meta_gradient(losses_fn, meta_fn, params, weights, .1)[0]
    assert torch.equal(first, meta_gradient(losses_fn, meta_fn, params, weights, .1)[0])
    assert all(torch.equal(v, before[k]) and v.grad is None and v.requires_grad for k, v in params.items())
    assert weights.grad is None


def test_works_inside_no_grad():
    params, losses_fn, meta_fn = problem()
    want = meta_gradient(losses_fn, meta_fn, params, torch.ones(3).double(), .1)
    with torch.no_grad(): got = meta_gradient(losses_fn, meta_fn, params, torch.ones(3).double(), .1)
    for a, b in zip(want, got): torch.testing.assert_close(a, b)


def test_parameters_without_influence_have_gradient_zero():
    gradient, value = gradient_at(lambda p: p["a"].square().sum(), {"a": torch.tensor([1., 2.]), "b": torch.ones(3)})
    assert gradient["a"].tolist() == [2, 4] and gradient["b"].tolist() == [0, 0, 0] and value == 5


def test_unknown_point():
    with pytest.raises(ConfigError, match="at='end'"): meta_gradient(None, None, {}, torch.ones(1), .1, at="end")


# the entropy of Equation 17

def naive_entropy(logits):
    bottom = sum(exp(a) for a in logits)
    return -sum(exp(a)/bottom*log(exp(a)/bottom) for a in logits)


@pytest.mark.parametrize("seed", range(5))
def test_entropy_slope(seed):
    a = torch.randn(4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)*2
    h = 1e-6
    for j, slope in enumerate(entropy_slope(a).tolist()):
        up, down = a.tolist(), a.tolist()
        up[j] += h; down[j] -= h
        assert slope == pytest.approx((naive_entropy(up) - naive_entropy(down))/(2*h), abs=1e-8)
    leaf = a.clone().requires_grad_()
    p = leaf.softmax(0)
    torch.testing.assert_close(entropy_slope(a), torch.autograd.grad(-(p*p.log()).sum(), leaf)[0])


def test_entropy_slope_of_a_collapsed_distribution_is_finite():
    assert entropy_slope(torch.tensor([500., 0., 0.])).tolist() == [0., 0., 0.]


# the optimizer

def naive_srmo(gradients, lr, beta, momentum, sign, raw, clip=5.):
    "Equations 16-18 (with the averaging of the default) over lists of floats; the entropy's slope by differences."
    n = len(gradients[0])
    a, average = [1.]*n if raw else [0.]*n, [0.]*n
    for t, g in enumerate(gradients, 1):
        bottom = sum(exp(x) for x in a)
        p = [exp(x)/bottom for x in a]
        if raw: slope = list(g)
        else:
            size = sqrt(sum(x*x for x in g))
            average = [momentum*m + (1 - momentum)*x/size for m, x in zip(average, g)]
            mean = [m/(1 - momentum**t) for m in average]
            # d/da_j of sum_i n p_i mean_i, term by term
            slope = [sum(n*p[i]*((i == j) - p[j])*mean[i] for i in range(n)) for j in range(n)]
        for j in range(n):
            h = 1e-6
            slope[j] += sign*beta*(naive_entropy([x + h*(i == j) for i, x in enumerate(a)])
                                   - naive_entropy([x - h*(i == j) for i, x in enumerate(a)]))/(2*h)
        size = sqrt(sum(x*x for x in slope))
        if size > clip: slope = [x*clip/size for x in slope]
        a = [x - lr*s for x, s in zip(a, slope)]
    if raw: return a
    bottom = sum(exp(x) for x in a)
    return [n*exp(x)/bottom for x in a]


NAMES = ("ce", "triplet", "mix", "info_nce")


def estimates(n=25, seed=0):
    noise = torch.randn(n, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return noise + torch.tensor([-.5, 0, .2, 0], dtype=torch.float64)


@pytest.mark.parametrize("sign", [-1., 0., 1.])
@pytest.mark.parametrize("raw", [False, True])
@pytest.mark.parametrize("momentum", [0., .9])
@pytest.mark.parametrize("device", DEVICES)
def test_updates_are_the_formulas(sign, raw, momentum, device):
    srmo = SRMO(NAMES, lr=.05, beta=.7, momentum=momentum, regulariser=sign, raw=raw).double().to(device)
    for g in estimates(): srmo.update(g.to(device))
    assert srmo.weights().tolist() == pytest.approx(naive_srmo(estimates().tolist(), .05, .7, momentum, sign, raw),
                                                    abs=1e-6)


def test_clipping_at_five():
    srmo = SRMO(NAMES, lr=1., raw=True, regulariser=0.)
    srmo.update(torch.tensor([30., 0., 40., 0.]))
    torch.testing.assert_close(srmo.weights(), torch.tensor([-2., 1., -3., 1.]))
    small = SRMO(NAMES, lr=1., raw=True, regulariser=0.)
    small.update(torch.tensor([3., 0., 3.9, 0.]))
    torch.testing.assert_close(small.weights(), torch.tensor([-2., 1., -2.9, 1.]))


@pytest.mark.parametrize("raw", [False, True])
def test_start_at_one_each(raw): assert SRMO(NAMES, raw=raw).weights().tolist() == [1, 1, 1, 1]


def test_weights_stay_positive_and_add_to_n():
    srmo = SRMO(NAMES, lr=3.)
    for g in estimates(100, 1): srmo.update(g)
    assert (srmo.weights() > 0).all() and srmo.weights().sum().item() == pytest.approx(4, abs=1e-5)


def test_size_of_an_estimate_is_irrelevant_and_its_sign_is_not():
    a, b, c = SRMO(NAMES), SRMO(NAMES), SRMO(NAMES)
    for g in estimates(5): a.update(g); b.update(1e-6*g); c.update(-g)
    torch.testing.assert_close(a.weights(), b.weights())
    assert (a.logits*c.logits < 0).all()


def test_a_zero_gradient_moves_nothing_from_the_start():
    srmo = SRMO(NAMES)
    srmo.update(torch.zeros(4))
    assert srmo.weights().tolist() == [1, 1, 1, 1]


def test_sign_of_the_entropy():
    "From unequal weights, without a meta-gradient: the default evens them out, the sign as printed drives them apart."
    ends = {}
    for sign in (-1., 0., 1.):
        srmo = SRMO(NAMES, lr=.5, regulariser=sign)
        srmo.logits.copy_(torch.tensor([.5, 0., 0., -.5]))
        for _ in range(60): srmo.update(torch.zeros(4))
        ends[sign] = srmo.weights()
    assert ends[-1.].max() < 1.05 and ends[1.].max() > 3.9
    torch.testing.assert_close(ends[0.], 4*torch.tensor([.5, 0., 0., -.5]).softmax(0))


@pytest.mark.parametrize("raw", [False, True])
def test_signal_to_noise_is_the_mean_direction_over_the_spread_around_it(raw):
    srmo, seen = SRMO(NAMES, raw=raw).double(), []
    assert srmo.signal_to_noise() == 0
    for g in estimates(40):
        srmo.update(g)
        seen.append([x/sqrt(sum(v*v for v in g.tolist())) for x in g.tolist()])
    mean = [sum(column)/40 for column in zip(*seen)]
    variance = sum(sum((x - m)**2 for x, m in zip(row, mean)) for row in seen)/40
    assert srmo.signal_to_noise().item() == pytest.approx(sqrt(sum(m*m for m in mean)/variance))


@pytest.mark.parametrize("raw", [False, True])
def test_state_round_trip_is_exact(raw):
    a, b = SRMO(NAMES, raw=raw), SRMO(NAMES, raw=raw)
    for g in estimates(7): a.update(g)
    b.load_state_dict({k: v.clone() for k, v in a.state_dict().items()})
    for g in estimates(4, 3): a.update(g); b.update(g)
    assert all(torch.equal(v, b.state_dict()[k]) for k, v in a.state_dict().items()) and a.updates.item() == 11


def test_weights_are_a_copy_and_not_trained_by_the_loss():
    srmo = SRMO(NAMES, raw=True)
    srmo.weights().zero_()
    assert srmo.weights().tolist() == [1, 1, 1, 1] and not list(srmo.parameters())


def test_total_goes_by_name():
    srmo = SRMO(("a", "b"), raw=True)
    srmo.logits.copy_(torch.tensor([2., 3.]))
    x = torch.tensor(1., requires_grad=True)
    total = srmo.total({"b": 10*x, "a": x})
    total.backward()
    assert total.item() == 32 and x.grad.item() == 32
    for wrong in ({"a": x}, {"a": x, "b": x, "c": x}):
        with pytest.raises(ConfigError, match="same names"): srmo.total(wrong)


@pytest.mark.parametrize("every", [1, 4])
def test_due(every): assert [s for s in range(13) if SRMO(("a",), every=every).due(s)] == list(range(every, 13, every))


@pytest.mark.parametrize("bad, message", [(dict(names=()), "names"), (dict(names=("a", "a")), "names"),
                                          (dict(names=("a",), regulariser=.5), "sign"),
                                          (dict(names=("a",), momentum=1.), "momentum"),
                                          (dict(names=("a",), every=0), "every")])
def test_bad_options(bad, message):
    with pytest.raises(ConfigError, match=message): SRMO(**bad)
