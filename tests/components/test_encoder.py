"""Equations 5 to 8 in scalar float64 loops, good and bad weight files, learning rates, the schedule, EMA and cost."""
import copy
import itertools
import math
import os
import pickle
import warnings

import numpy as np
import pytest
import safetensors.torch
import timm
import torch
from hypothesis import given, strategies as st
from torch import nn

from upl_reid.components.encoder import (IBN, SHAPES, Encoder, FlipAverage, GeM, Shape, StemViT, build_encoder,
                                         compute_dtype, cosine_restarts, feature_map, fit_positions, forward_cost,
                                         load_deit, load_named, make_ema, map_and_output, parameter_groups,
                                         pretrained_state, read_weights, rescale_input, split_norms, update_ema,
                                         use_ibn, whiten_projection)
from upl_reid.core import ConfigError, DataError, seeded_torch
from upl_reid.components.srmo import loss_slopes

TOY = Shape((4, 5), (2, 1), 2, 8, 2, 2)         # tokens of 4 pixels, 8 channels, 2 blocks, 2 heads


def stir(module, seed=0):
    "Give every parameter and statistic a value that is neither 0 nor 1, so that leaving one out shows."
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, t in [*module.named_parameters(), *module.named_buffers()]:
            if t.is_floating_point():
                random = torch.rand if "var" in name else torch.randn
                t.copy_(random(t.shape, generator=g)*(.9 if "var" in name else .4) + (.3 if "var" in name else 0))
    return module


def toy_encoder(size=(8, 12), dim=5, seed=0):
    with seeded_torch("toy", seed): encoder = Encoder(StemViT(TOY, size), TOY.width, dim)
    return stir(encoder, seed).double().eval()


def pictures(n, size=(8, 12), seed=0):
    return torch.randn(n, 3, *size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def same(a, b): return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def test_a_picture_and_its_mirror_image_count_alike():
    encoder, x = toy_encoder(), pictures(3)
    vectors = FlipAverage(encoder)(x)
    for i in range(3):
        mirror = torch.empty_like(x[i])
        for column in range(x.shape[3]): mirror[:, :, column] = x[i, :, :, x.shape[3] - 1 - column]
        total = [a + b for a, b in zip(*(val(encoder(image[None])[0]).tolist() for image in (x[i], mirror)))]
        length = math.sqrt(sum(v*v for v in total))
        np.testing.assert_allclose(val(vectors[i]), [v/length for v in total], atol=1e-12)


# ---------------------------------------------------------------- equations 5 to 8, a number at a time

def val(t): return t.detach().numpy().astype(np.float64)
def gelu(x): return x*.5*(1 + math.erf(x/math.sqrt(2)))


def naive_conv(x, weight, bias, stride, pad):
    "(C, H, W) -> (O, h, w)."
    C, H, W = x.shape
    O, _, kh, kw = weight.shape
    out = np.zeros((O, (H + 2*pad - kh)//stride + 1, (W + 2*pad - kw)//stride + 1))
    for o, i, j in itertools.product(*map(range, out.shape)):
        total = 0. if bias is None else bias[o]
        for c, a, b in itertools.product(range(C), range(kh), range(kw)):
            y, z = i*stride + a - pad, j*stride + b - pad
            if 0 <= y < H and 0 <= z < W: total += weight[o, c, a, b]*x[c, y, z]
        out[o, i, j] = total
    return out


def naive_linear(x, layer):
    return [sum(w*v for w, v in zip(row, x)) + b for row, b in zip(val(layer.weight), val(layer.bias))]


def naive_norm(x, layer, eps=1e-6):
    mean = sum(x)/len(x)
    var = sum((v - mean)**2 for v in x)/len(x)
    return [(v - mean)/math.sqrt(var + eps)*w + b for v, w, b in zip(x, val(layer.weight), val(layer.bias))]


def naive_attention(tokens, attn, heads):
    "Equation 5: every head of every token, the softmax written out."
    d = len(tokens[0])
    dk = d//heads
    qkv = [naive_linear(t, attn.qkv) for t in tokens]
    out = []
    for i in range(len(tokens)):
        concat = []
        for m in range(heads):
            q = qkv[i][m*dk:(m + 1)*dk]
            scores = [sum(a*b for a, b in zip(q, qkv[j][d + m*dk:d + (m + 1)*dk]))/math.sqrt(dk)
                      for j in range(len(tokens))]
            e = [math.exp(s - max(scores)) for s in scores]
            concat += [sum(e[j]/sum(e)*qkv[j][2*d + m*dk + c] for j in range(len(tokens))) for c in range(dk)]
        out.append(naive_linear(concat, attn.proj))
    return out


def naive_tokens(image, body, shape):
    x, layers = val(image), list(body.stem)
    for conv, bn, stride in zip(layers[::3], layers[1::3], shape.strides):
        x = naive_conv(x, val(conv.weight), None, stride, 1)
        for c, i, j in itertools.product(*map(range, x.shape)):
            scale = val(bn.weight)[c]/math.sqrt(val(bn.running_var)[c] + 1e-5)
            x[c, i, j] = gelu((x[c, i, j] - val(bn.running_mean)[c])*scale + val(bn.bias)[c])
    x = naive_conv(x, val(body.embed.weight), val(body.embed.bias), shape.patch, 0)
    tokens = [[x[c, i, j] + val(body.pos_embed)[0, i*x.shape[2] + j, c] for c in range(x.shape[0])]
              for i in range(x.shape[1]) for j in range(x.shape[2])]
    for block in body.blocks:
        attended = naive_attention([naive_norm(t, block.norm1) for t in tokens], block.attn, shape.heads)
        tokens = [[a + b for a, b in zip(t, s)] for t, s in zip(tokens, attended)]
        grown = [naive_linear([gelu(v) for v in naive_linear(naive_norm(t, block.norm2), block.mlp.fc1)],
                              block.mlp.fc2) for t in tokens]
        tokens = [[a + b for a, b in zip(t, s)] for t, s in zip(tokens, grown)]
    return np.array([naive_norm(t, body.norm) for t in tokens])


def naive_embedding(image, encoder, shape):
    "Equations 6 and 7 with the neck in evaluation mode between them."
    tokens = naive_tokens(image, encoder.body, shape)
    mean = [sum(tokens[j][c] for j in range(len(tokens)))/len(tokens) for c in range(tokens.shape[1])]
    v, neck = naive_linear(mean, encoder.project), encoder.neck
    statistics = map(val, (neck.running_mean, neck.running_var, neck.weight, neck.bias))
    v = [(a - m)/math.sqrt(s + 1e-5)*w + b for a, m, s, w, b in zip(v, *statistics)]
    length = math.sqrt(sum(a*a for a in v))
    return np.array([a/length for a in v])


@pytest.mark.parametrize("heads", [1, 2, 4])
def test_multi_head_attention_is_equation_5(heads):
    with seeded_torch("heads", heads): body = stir(StemViT(Shape((4,), (2,), 2, 8, 1, heads), (8, 12))).double().eval()
    tokens = torch.randn(1, 6, 8, generator=torch.Generator().manual_seed(heads), dtype=torch.float64)
    naive = naive_attention(val(tokens[0]).tolist(), body.blocks[0].attn, heads)
    np.testing.assert_allclose(val(body.blocks[0].attn(tokens)[0]), naive, atol=1e-10)


@pytest.mark.parametrize("seed", range(2))
def test_tokens_are_stem_positions_and_blocks(seed):
    encoder, x = toy_encoder(seed=seed), pictures(2, seed=seed)
    naive = np.stack([naive_tokens(image, encoder.body, TOY) for image in x])
    np.testing.assert_allclose(val(encoder.body.tokens(x)), naive, atol=1e-9)
    np.testing.assert_allclose(val(encoder.body(x)), naive.mean(1), atol=1e-9)


@pytest.mark.parametrize("seed", range(2))
def test_embedding_is_equations_6_and_7(seed):
    encoder, x = toy_encoder(seed=seed), pictures(2, seed=seed)
    np.testing.assert_allclose(val(encoder(x)), np.stack([naive_embedding(image, encoder, TOY) for image in x]),
                               atol=1e-9)


@pytest.mark.parametrize("training", [True, False])
def test_neck_by_hand(training):
    with seeded_torch("neck"): encoder = stir(Encoder(nn.Flatten(), 12, 4)).train(training)
    encoder.neck.bias.data.zero_()
    before = {k: val(v) for k, v in encoder.neck.state_dict().items() if v.is_floating_point()}
    x = pictures(5, (2, 2)).float()
    got = val(encoder(x))
    v = np.array([naive_linear(row, encoder.project) for row in val(x).reshape(5, 12)])
    mean, var = (v.mean(0), v.var(0)) if training else (before["running_mean"], before["running_var"])
    z = (v - mean)/np.sqrt(var + 1e-5)*before["weight"]
    np.testing.assert_allclose(got, [row/math.sqrt(sum(a*a for a in row)) for row in z], atol=1e-5)
    share = .1 if training else 0
    moved = ((1 - share)*before["running_mean"] + share*v.mean(0),
             (1 - share)*before["running_var"] + share*v.var(0, ddof=1))
    for name, expected in zip(("running_mean", "running_var"), moved):
        np.testing.assert_allclose(val(getattr(encoder.neck, name)), expected, atol=1e-5)


def test_batch_is_the_stack_of_its_images():
    "Equation 8: in evaluation mode a row does not depend on the others."
    encoder, x = toy_encoder(), pictures(6)
    batch = encoder(x)
    assert batch.shape == (6, 5)
    torch.testing.assert_close(batch, torch.cat([encoder(x[i:i + 1]) for i in range(6)]), atol=1e-6, rtol=0)
    order = torch.tensor([3, 0, 5, 1])
    torch.testing.assert_close(encoder(x[order]), batch[order], atol=1e-6, rtol=0)


def test_neck_keeps_its_shift_at_zero():
    encoder = build_encoder("micro", (16, 16), 6)
    assert not encoder.neck.bias.requires_grad and encoder.neck.weight.requires_grad and not encoder.neck.bias.any()


@pytest.mark.parametrize("low", [torch.bfloat16, torch.float16])
def test_lengths_are_computed_in_float32_under_autocast(low):
    encoder, x = stir(Encoder(nn.Flatten(), 12, 4)).eval(), pictures(4, (2, 2)).float()
    with torch.no_grad(), torch.autocast("cpu", low):
        v, inner = encoder(x), encoder.project(x.flatten(1))
    assert inner.dtype == low and v.dtype == torch.float32
    torch.testing.assert_close(v.norm(dim=1), torch.ones(4), atol=1e-6, rtol=0)


def test_narrow_products_leave_everything_else_in_float32(monkeypatch):
    "A GPU's bfloat16 body and projection, on the CPU; weights, gradients and slopes are float32, close to float32's."
    encoder, x = stir(build_encoder("micro", (48, 24), 16)), pictures(8, (48, 24)).float()
    g = torch.Generator().manual_seed(0)
    encoder.train()
    parameters = {k: p for k, p in encoder.named_parameters() if p.requires_grad}
    direction = {k: torch.randn(p.shape, generator=g) for k, p in parameters.items()}
    def losses(p):
        state = {**p, **{k: b.clone() for k, b in encoder.named_buffers()}}
        v = torch.func.functional_call(encoder, state, (x,))
        return torch.stack([v[:4].sum(), (v @ v.T).square().sum()])
    def everything():
        encoder.zero_grad()
        losses(parameters)[1].backward()
        gradient = torch.cat([p.grad.flatten() for p in parameters.values()])
        return gradient, loss_slopes(losses, parameters, direction), encoder(x)
    wide = everything()
    inside = []
    encoder.project.register_forward_hook(lambda m, i, out: inside.append(out.dtype))
    monkeypatch.setattr("upl_reid.components.encoder.compute_dtype", lambda device: torch.bfloat16)
    low = everything()
    assert set(inside) == {torch.bfloat16} and all(t.dtype == torch.float32 for t in low)
    for a, b in zip(low, wide):
        assert not torch.equal(a, b) and torch.nn.functional.cosine_similarity(a.flatten(), b.flatten(), dim=0) > .99


def test_only_a_gpu_that_has_the_units_works_in_bfloat16(monkeypatch):
    asked = []
    monkeypatch.setattr("torch.cuda.is_bf16_supported",
                        lambda including_emulation: bool(asked.append(including_emulation)) or len(asked) > 1)
    gpu = torch.device("cuda")
    assert compute_dtype(torch.device("cpu")) == torch.float32 and not asked
    assert [compute_dtype(gpu), compute_dtype(gpu)] == [torch.float32, torch.bfloat16] and asked == [False, False]


# ---------------------------------------------------------------- sizes

@pytest.mark.parametrize("shape, size, grid", [(SHAPES["micro"], (48, 24), (6, 3)), (SHAPES["demo"], (64, 32), (8, 4)),
                                               (TOY, (8, 4), (2, 1)),
                                               (Shape((4,), (3,), 5, 8, 1, 1), (45, 30), (3, 2))])
def test_token_grid(shape, size, grid):
    body = StemViT(shape, size).eval()
    assert body.grid == grid and body.pos_embed.shape == (1, grid[0]*grid[1], shape.width)
    with torch.no_grad(): assert body.tokens(torch.zeros(1, 3, *size)).shape == (1, grid[0]*grid[1], shape.width)


def test_deit_small_has_128_tokens_and_the_fine_stem_512():
    with torch.device("meta"):
        grids = [StemViT(SHAPES[name], (256, 128)).grid for name in ("deit_small", "deit_small_fine")]
    assert grids == [(16, 8), (32, 16)]


@pytest.mark.parametrize("size", [(50, 24), (48, 20), (7, 8)])
def test_size_that_does_not_divide_is_refused(size):
    with pytest.raises(ConfigError, match=f"{size[0]}x{size[1]} .*multiples of 8"): StemViT(SHAPES["micro"], size)


# ---------------------------------------------------------------- DeiT's weights

def stock(name="deit_tiny_patch16_224", seed=0, **kwargs):
    toy = {"depth": 2, "embed_dim": 8, "num_heads": 2, "img_size": 64, **kwargs}
    with seeded_torch("stock", seed): return stir(timm.create_model(name, num_classes=0, **toy), seed)


def stemmed(size=(16, 8), **changes): return stir(StemViT(Shape(*{**vars(TOY), **changes}.values()), size), seed=9)


@pytest.mark.parametrize("name, prefix", [("deit_tiny_patch16_224", 1), ("deit_tiny_distilled_patch16_224", 2)])
def test_deit_weights_are_copied(name, prefix):
    deit, body = stock(name).eval(), stemmed((16, 16)).eval()
    fresh = {k: v.clone() for k, v in body.state_dict().items()}
    kept = load_deit(body, deit.state_dict())
    state = deit.state_dict()
    assert state["pos_embed"].shape[1] == prefix + 16
    for k, v in body.state_dict().items():
        if k == "pos_embed":
            assert torch.equal(v, state["pos_embed"][:, prefix:])       # 4 x 4 tokens in both: nothing to resample
        elif k.startswith(("blocks.", "norm.")): assert torch.equal(v, state[k]) and not torch.equal(v, fresh[k])
        else: assert k in kept and torch.equal(v, fresh[k])
    assert set(kept) == {k for k in fresh if k.startswith(("stem.", "embed."))} and kept == sorted(kept)
    x = torch.randn(2, 7, 8)
    # heads, epsilons and order are DeiT's too
    torch.testing.assert_close(body.norm(body.blocks(x)), deit.norm(deit.blocks(x)), atol=0, rtol=0)


@pytest.mark.parametrize("name", ["deit_tiny_patch16_224", "deit_tiny_distilled_patch16_224"])
def test_position_embedding_is_resampled_by_place(name):
    deit, body = stock(name, img_size=256).state_dict(), stemmed((32, 16))               # 16 x 16 tokens -> 8 x 4
    prefix = deit["pos_embed"].shape[1] - 256
    rows, cols = torch.meshgrid(torch.arange(16.), torch.arange(16.), indexing="ij")
    plane = torch.stack([2.*rows + 3.*cols]*8, -1).view(1, 256, 8)
    load_deit(body, {**deit, "pos_embed": torch.cat([torch.full((1, prefix, 8), 1e6), plane], 1)})
    got = body.pos_embed.detach().view(8, 4, 8)
    assert got.abs().max() < 100                                                         # the class token is gone
    for i in range(1, 7):
        for j in range(1, 3):       # centre of new token (i, j) in old tokens; the borders bend a little
            torch.testing.assert_close(got[i, j], torch.full((8,), 2*(2*i + .5) + 3*(4*j + 1.5)), atol=.7, rtol=0)


FAULTS = {
    "missing weight": lambda s: s.pop("blocks.1.attn.qkv.weight"),
    "missing norm": lambda s: s.pop("norm.bias"),
    "shape of a weight": lambda s: s.update({"blocks.0.mlp.fc1.weight": torch.zeros(3, 8)}),
    "missing pos_embed": lambda s: s.pop("pos_embed"),
    "width of pos_embed": lambda s: s.update(pos_embed=torch.zeros(1, 17, 9)),
    "flat pos_embed": lambda s: s.update(pos_embed=torch.zeros(17, 8)),
    "empty pos_embed": lambda s: s.update(pos_embed=torch.zeros(1, 0, 8)),
    "pos_embed of no square": lambda s: s.update(pos_embed=torch.zeros(1, 2*4, 8)),
    "deeper": lambda s: s.update({k.replace("blocks.1", "blocks.2"): v
                                  for k, v in s.items() if k.startswith("blocks.1")}),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_checkpoint_that_does_not_fit_leaves_the_body_alone(fault):
    state, body = stock().state_dict(), stemmed((16, 16))
    FAULTS[fault](state)
    before = {k: v.clone() for k, v in body.state_dict().items()}
    with pytest.raises(DataError, match="width 8 and 2 blocks"): load_deit(body, state)
    assert same(body.state_dict(), before)


def test_weights_with_a_stem_are_taken_whole_or_not_at_all():
    source, body = stemmed((16, 8), depth=2), StemViT(TOY, (16, 8))
    assert load_deit(body, source.state_dict()) == [] and same(body.state_dict(), source.state_dict())
    for state in (StemViT(TOY, (16, 16)).state_dict(),                                  # another grid
                  {k: v for k, v in source.state_dict().items() if not k.startswith("embed.")},
                  {**source.state_dict(), "blocks.2.norm1.weight": torch.ones(8)}):
        with pytest.raises(DataError, match="does not fit.*--start"): load_deit(body, state)
        assert same(body.state_dict(), source.state_dict())


@pytest.mark.parametrize("name", ["blocks.0.attn.qkv.weight", "pos_embed"])
def test_load_deit_refuses_weights_that_hold_nan(name):
    state, body = stock().state_dict(), stemmed()
    state[name].view(-1)[-1] = torch.nan
    before = {k: v.clone() for k, v in body.state_dict().items()}
    with pytest.raises(DataError, match=f"first: {name}. hold NaN"): load_deit(body, state)
    assert same(body.state_dict(), before)


def test_load_deit_leaves_the_checkpoint_alone():
    state, body = stock().state_dict(), stemmed()
    before = {k: v.clone() for k, v in state.items()}
    load_deit(body, state)
    with torch.no_grad():
        for p in body.parameters(): p.zero_()
    assert same(state, before)


# ---------------------------------------------------------------- grids of position embeddings

@pytest.mark.parametrize("side", [7, 14, 16])
@pytest.mark.parametrize("grid", [(16, 8), (14, 14), (24, 8)])
def test_usual_square_grids_are_resampled_without_a_word(side, grid):
    deit, body = stock(img_size=16*side).state_dict(), stemmed((4*grid[0], 4*grid[1]))
    vit = stock(img_size=(16*grid[0], 16*grid[1]))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_deit(body, deit)
        found = fit_positions(vit, deit)["pos_embed"]
    want = timm.layers.resample_abs_pos_embed(deit["pos_embed"], list(grid), num_prefix_tokens=1)
    assert torch.equal(found, want) and torch.equal(body.pos_embed, want[:, 1:])


@pytest.mark.parametrize("size, grid, words", [
    ((512, 128), (16, 4), "256 positions.*16x16, but could be 32x8"),       # of the network's shape
    ((128, 512), (4, 16), "256 positions.*16x16, but could be 8x32"),
    ((256, 64), (16, 8), "64 positions.*8x8, but could be 16x4")])          # 8x8 places are no usual square
def test_a_square_count_that_may_be_another_grid_is_said(size, grid, words):
    state, vit = stock(img_size=size).state_dict(), stock(img_size=(16*grid[0], 16*grid[1]))
    with pytest.warns(UserWarning, match=words): fit_positions(vit, state)
    with pytest.warns(UserWarning, match=words): load_deit(stemmed((4*grid[0], 4*grid[1])), state)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fit_positions(vit, state, square=True)


def test_as_many_places_as_the_network_has_are_its_own_unless_they_are_known_as_a_square():
    tall, square = stock(img_size=(512, 128), seed=1), stock(img_size=256).state_dict()
    with pytest.warns(UserWarning, match="256 positions.*32x8, but could be 16x16"):
        assert torch.equal(fit_positions(tall, square)["pos_embed"], square["pos_embed"])
    want = timm.layers.resample_abs_pos_embed(square["pos_embed"], [32, 8], num_prefix_tokens=1)
    assert torch.equal(fit_positions(tall, square, square=True)["pos_embed"], want)
    state, body = stock(img_size=(256, 128)).state_dict(), stemmed((64, 32))
    load_deit(body, state)
    assert torch.equal(body.pos_embed, state["pos_embed"][:, 1:])           # 16x8, without the class token


def test_a_class_token_is_no_patch():
    state = stock(img_size=(192, 64)).state_dict()                          # 12x4 places and a class token: 7x7
    with pytest.raises(DataError, match="no square grid of patches, nor 16x8"): load_deit(stemmed((64, 32)), state)
    bare = dict(class_token=False, global_pool="avg", fc_norm=False)
    for size in ((256, 128), 112):                                          # of 112: 7x7 places, as many as the file
        with pytest.raises(DataError, match="1 class tokens and this network 0"):
            fit_positions(stock(img_size=size, **bare), state)


# ---------------------------------------------------------------- files

STATE = {"a.weight": torch.arange(6.).view(2, 3), "b": torch.tensor([1, 2])}


def write(path, state):
    safetensors.torch.save_file(state, path) if path.suffix == ".safetensors" else torch.save(state, path)
    return path


@pytest.mark.parametrize("name", ["w.safetensors", "w.pth", "w.bin"])
def test_weights_round_trip(tmp_path, name):
    assert same(read_weights(write(tmp_path/name, STATE)), STATE) and same(read_weights(str(tmp_path/name)), STATE)




class Trap:
    "Writes a file if it is unpickled."
    def __init__(self, path): self.path = path
    def __reduce__(self): return os.mkdir, (self.path,)


BAD = {
    "missing.pth": None,
    "garbage.pth": b"these are no weights",
    "garbage.safetensors": b"these are no weights",
    "empty.pth": b"",
    "list.pth": [torch.zeros(2)],
    "tensor.pth": torch.zeros(2),
    "nothing.pth": {},
    "model.pth": {"model": [torch.zeros(2)]},
}


@pytest.mark.parametrize("name", BAD)
def test_bad_weights_name_the_file(tmp_path, name):
    content = BAD[name]
    if isinstance(content, bytes): (tmp_path/name).write_bytes(content)
    elif content is not None: torch.save(content, tmp_path/name)
    with pytest.raises(DataError) as e: read_weights(tmp_path/name)
    assert str(tmp_path/name) in str(e.value) and "; " in str(e.value) and "\n" not in str(e.value)


def test_truncated_safetensors_are_refused(tmp_path):
    path = write(tmp_path/"w.safetensors", STATE)
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(DataError, match="w.safetensors"): read_weights(path)


def test_folder_is_no_file_of_weights(tmp_path):
    with pytest.raises(DataError, match="no weights at"): read_weights(tmp_path)


def test_code_in_a_pickle_is_not_executed(tmp_path):
    mark = tmp_path/"executed"
    torch.save({"a": torch.zeros(1), "b": Trap(str(mark))}, tmp_path/"trap.pth")
    with pytest.raises(DataError, match="trap.pth"): read_weights(tmp_path/"trap.pth")
    assert not mark.exists()
    torch.load(tmp_path/"trap.pth", weights_only=False)
    assert mark.exists()                # the trap does work where code is allowed


# ---------------------------------------------------------------- building

def test_unknown_backbone():
    with pytest.raises(ConfigError, match="resnet51.*micro, demo.*resnet50"): build_encoder("resnet51", (64, 32), 8)


def offline(*args, pretrained=False, **kwargs):
    assert pretrained
    torch.rand(3)                       # timm draws random values before it looks for the file
    raise OSError("no route to host")


@pytest.fixture
def no_network(monkeypatch):
    real = timm.create_model
    monkeypatch.setattr(timm, "create_model",
                        lambda *a, **k: offline(*a, **k) if k.get("pretrained") else real(*a, **k))
    monkeypatch.setitem(SHAPES, "deit_small", TOY)


@pytest.mark.parametrize("name", ["deit_small", "resnet18", "demo"])
def test_imagenet_without_network_says_what_to_do(no_network, name):
    before = torch.get_rng_state()
    with pytest.raises(ConfigError, match="weights=<local file>.*weights='none'"):
        build_encoder(name, (64, 32), 8, "imagenet")
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("name", ["deit_small", "demo"])
def test_imagenet_or_none_warns_and_goes_on(no_network, name):
    with pytest.warns(UserWarning, match="no ImageNet weights.*random values"):
        encoder = build_encoder(name, (64, 32), 8, "imagenet-or-none", seed=4)
    assert same(encoder.state_dict(), build_encoder(name, (64, 32), 8, "none", seed=4).state_dict())


@pytest.mark.parametrize("weights", ["imagenet", "imagenet-or-none"])
def test_imagenet_weights_arrive(monkeypatch, weights):
    deit, asked = stock(), []
    monkeypatch.setitem(SHAPES, "deit_small", TOY)
    monkeypatch.setattr(timm, "create_model", lambda name, **k: asked.append((name, k)) or deit)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        encoder = build_encoder("deit_small", (16, 16), 8, weights)
    assert asked == [("deit_small_patch16_224", {"pretrained": True, "num_classes": 0})]
    assert torch.equal(encoder.body.blocks[1].mlp.fc2.weight, deit.blocks[1].mlp.fc2.weight)
    assert torch.equal(encoder.body.pos_embed, deit.pos_embed[:, 1:])


def test_pretrained_state_leaves_the_callers_random_numbers_alone(monkeypatch):
    real, before = timm.create_model, torch.get_rng_state()
    monkeypatch.setattr(timm, "create_model", lambda name, pretrained, **k: real(name, **k))
    assert "conv1.weight" in pretrained_state("resnet18")
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("file", ["imagenet-deit.pth", "deit.safetensors"])
def test_own_body_from_a_local_file(tmp_path, monkeypatch, file):
    monkeypatch.setitem(SHAPES, "toy", TOY)
    monkeypatch.chdir(tmp_path)         # a file whose name begins with "imagenet" is still a file
    deit = stock()
    write(tmp_path/file, deit.state_dict())
    encoder, fresh = build_encoder("toy", (16, 16), 6, file, seed=1), build_encoder("toy", (16, 16), 6, seed=1)
    assert torch.equal(encoder.body.blocks[0].attn.proj.weight, deit.blocks[0].attn.proj.weight)
    assert torch.equal(encoder.body.stem[0].weight, fresh.body.stem[0].weight)
    assert torch.equal(encoder.project.weight, fresh.project.weight)


def test_timm_body_from_a_local_file(tmp_path):
    with seeded_torch("file"): model = stir(timm.create_model("mobilenetv3_small_050"))
    encoder = build_encoder("mobilenetv3_small_050", (32, 16), 6,
                            str(write(tmp_path/"m.safetensors", model.state_dict())))
    own = encoder.body.state_dict()
    assert all(torch.equal(v, model.state_dict()[k]) for k, v in own.items()) and "classifier.weight" not in own
    with torch.no_grad():
        # its last layer is wider than its features
        assert encoder.eval()(torch.randn(2, 3, 32, 16)).shape == (2, 6)


@pytest.mark.parametrize("fault", ["missing", "shape"])
def test_timm_weights_that_do_not_fit_leave_the_body_alone(fault):
    with seeded_torch("fit"):
        body, other = timm.create_model("resnet18", num_classes=0), stir(timm.create_model("resnet18", num_classes=0))
    state, before = other.state_dict(), {k: v.clone() for k, v in body.state_dict().items()}
    if fault == "missing": del state["layer4.1.bn2.running_var"]
    else: state["layer4.1.bn2.running_var"] = torch.ones(3)
    with pytest.raises(DataError, match=r"layer4\.1\.bn2\.running_var"): load_named(body, state)
    assert same(body.state_dict(), before)


@pytest.mark.parametrize("weights", ["none.pth", ""])
def test_path_of_weights_that_is_not_there(weights):
    with pytest.raises(DataError, match="no weights at"): build_encoder("micro", (16, 16), 6, weights)


@pytest.mark.parametrize("name", ["micro", "resnet18"])
def test_seed_names_the_initial_values(name):
    torch.manual_seed(5)
    before = torch.get_rng_state()
    a = build_encoder(name, (32, 16), 6, seed=1).state_dict()
    assert torch.equal(before, torch.get_rng_state())
    torch.manual_seed(6)
    assert same(a, build_encoder(name, (32, 16), 6, seed=1).state_dict())
    b = build_encoder(name, (32, 16), 6, seed=2).state_dict()
    assert not torch.equal(a["project.weight"], b["project.weight"])


@pytest.mark.parametrize("name", ["resnet18", "convnext_atto", "mobilenetv3_small_050"])
def test_convolutional_bodies_give_unit_rows(name):
    encoder = build_encoder(name, (64, 32), 7).eval()
    with torch.no_grad(): v = encoder(torch.randn(3, 3, 64, 32))
    assert v.shape == (3, 7)
    torch.testing.assert_close(v.norm(dim=1), torch.ones(3))


def test_body_of_one_image_size_is_refused_at_once():
    with pytest.raises(ConfigError, match=r"mixer_s16_224 .*224.*not \(64, 32\)"):
        build_encoder("mixer_s16_224", (64, 32), 7)
    assert build_encoder("deit_tiny_patch16_224", (224, 224), 7).project.in_features == 192


def test_a_stock_vision_transformer_takes_multiples_of_its_patches():
    with pytest.raises(ConfigError, match=r"deit_tiny_patch16_224.*patches of \(16, 16\).*\(72, 32\)"):
        build_encoder("deit_tiny_patch16_224", (72, 32), 7)
    encoder = build_encoder("deit_tiny_patch16_224", (64, 32), 7).eval()
    with torch.no_grad(): assert encoder(torch.randn(2, 3, 64, 32)).shape == (2, 7)


def test_position_embeddings_of_another_grid_are_resampled(tmp_path):
    stock = stir(timm.create_model("deit_tiny_patch16_224", num_classes=10))
    file = tmp_path/"vit.pth"
    torch.save(stock.state_dict(), file)
    body, state = build_encoder("deit_tiny_patch16_224", (64, 32), 7, str(file)).body, stock.state_dict()
    assert torch.equal(body.blocks[3].mlp.fc1.weight, state["blocks.3.mlp.fc1.weight"])
    given, found = state["pos_embed"][0], body.pos_embed[0]
    assert torch.equal(found[0], given[0]) and found.shape == (1 + 4*2, 192)
    grid = given[1:].view(14, 14, 192).permute(2, 0, 1)[None]
    want = nn.functional.interpolate(grid, (4, 2), mode="bicubic", antialias=True)[0].permute(1, 2, 0).reshape(8, 192)
    torch.testing.assert_close(found[1:], want, atol=1e-5, rtol=1e-5)
    odd = {**state, "pos_embed": state["pos_embed"][:, :150]}                 # 149 places are no square
    assert fit_positions(body, odd) is odd
    torch.save(odd, file)
    with pytest.raises(DataError, match="pos_embed.*150"):
        build_encoder("deit_tiny_patch16_224", (64, 32), 7, str(file))


# ---------------------------------------------------------------- pooling, pixel values and a start without a source

def test_generalised_mean_by_scalar_loops():
    pool, x = GeM(2.5), torch.randn(2, 3, 4, 5, dtype=torch.float64)
    with torch.no_grad(): got = pool(x)
    for b, c in itertools.product(range(2), range(3)):
        total = sum(max(x[b, c, i, j].item(), 1e-6)**2.5 for i in range(4) for j in range(5))
        assert got[b, c].item() == pytest.approx((total/20)**(1/2.5), rel=1e-5)
    assert GeM(flatten=False)(x.float()).shape == (2, 3, 1, 1)


@pytest.mark.parametrize("name", ["resnet18", "mobilenetv2_050", "mobilenetv3_small_050", "convnext_atto",
                                  "resnet18_ibn_a"])
def test_gem_pools_the_last_map_and_its_exponent_is_learnt(name, tmp_path):
    plain, gem = (build_encoder(name, (64, 32), 6, seed=3, pooling=p).train() for p in ("avg", "gem"))
    powers = [p for n, p in gem.named_parameters() if n.endswith("global_pool.power")]
    assert len(powers) == 1 and powers[0].item() == 3
    assert set(gem.state_dict()) - set(plain.state_dict()) == {n for n in gem.state_dict() if n.endswith("pool.power")}
    gem(torch.randn(4, 3, 64, 32)).square()[:, 0].sum().backward()
    assert powers[0].grad.abs() > 0
    if name == "resnet18":
        body, x = gem.eval().body, torch.randn(2, 3, 64, 32)
        with torch.no_grad(): grid, out = map_and_output(body, x)
        torch.testing.assert_close(out, grid.clamp(min=1e-6).pow(3).mean((2, 3)).pow(1/3))
    file = tmp_path/"w.pth"
    torch.save(stir(plain.body).state_dict(), file)                     # public weights have no exponent
    again = build_encoder(name, (64, 32), 6, str(file), pooling="gem")
    assert all(torch.equal(v, again.body.state_dict()[k]) for k, v in plain.body.state_dict().items())


@pytest.mark.parametrize("name", ["micro", "deit_tiny_patch16_224"])
def test_gem_needs_a_pooled_map(name):
    with pytest.raises(ConfigError, match=f"{name}.*gem.*avg"): build_encoder(name, (32, 32), 6, pooling="gem")
    with pytest.raises(ConfigError, match="pooling='max'.*avg or gem"): build_encoder(name, (32, 32), 6, pooling="max")


@pytest.mark.parametrize("route", ["forward", "map"])
def test_a_body_sees_the_pixels_that_its_weights_were_trained_with(route):
    encoder = build_encoder("tf_efficientnet_lite0", (64, 32), 6, seed=1).eval()
    plain = timm.create_model("tf_efficientnet_lite0", num_classes=0).eval()
    plain.load_state_dict(encoder.body.state_dict())
    pixels = torch.randint(0, 256, (2, 3, 64, 32), generator=torch.Generator().manual_seed(0)).float()
    imagenet = torch.tensor([[.485, .456, .406], [.229, .224, .225]]).view(2, 1, 3, 1, 1)
    given, wanted = (pixels/255 - imagenet[0])/imagenet[1], (pixels - 127.5)/127.5
    with torch.no_grad():
        got = encoder.body(given) if route == "forward" else map_and_output(encoder.body, given)[1]
        torch.testing.assert_close(got, plain(wanted), atol=1e-4, rtol=1e-4)
        copied = make_ema(encoder)
        torch.testing.assert_close(copied(given), encoder(given))


def test_pixel_values_of_ones_own_weights():
    given = build_encoder("resnet18", (32, 32), 6, seed=1, mean=(.5, .5, .5), std=(.25, .25, .25)).eval()
    plain = build_encoder("resnet18", (32, 32), 6, seed=1).eval()
    x = torch.rand(2, 3, 32, 32)
    imagenet = torch.tensor([[.485, .456, .406], [.229, .224, .225]]).view(2, 1, 3, 1, 1)
    with torch.no_grad(): torch.testing.assert_close(given((x - imagenet[0])/imagenet[1]), plain((x - .5)/.25))
    conv = nn.Conv2d(3, 1, 1)
    rescale_input(conv, (.485, .456, .406), (.229, .224, .225))
    assert not conv._forward_pre_hooks


@pytest.mark.parametrize("count, width, dim", [(40, 6, 4), (40, 6, 6), (5, 8, 6), (30, 4, 7)])
def test_whitening_by_scalar_loops(count, width, dim):
    g = torch.Generator().manual_seed(count)
    x = torch.randn(count, width, generator=g, dtype=torch.float64)*torch.arange(1, width + 1)
    encoder = Encoder(nn.Identity(), width, dim).double().eval()
    before = copy.deepcopy(encoder.state_dict())
    whiten_projection(encoder, x)
    mean = [sum(x[i, c].item() for i in range(count))/count for c in range(width)]
    covariance = np.array([[sum((x[i, a].item() - mean[a])*(x[i, b].item() - mean[b]) for i in range(count))/count
                            for b in range(width)] for a in range(width)])
    values, axes = np.linalg.eigh(covariance)
    values, axes, average = values[::-1], axes[:, ::-1], np.trace(covariance)/width
    with torch.no_grad(): z = encoder.project(x).numpy()
    for k in range(min(dim, width, count - 1)):
        want = np.array([sum((x[i, c].item() - mean[c])*axes[c, k] for c in range(width)) for i in range(count)])
        want /= math.sqrt(values[k])
        assert min(np.abs(z[:, k] - want).max(), np.abs(z[:, k] + want).max()) < 1e-4       # an axis has no sign
        assert encoder.neck.weight[k].item() == pytest.approx(math.sqrt(values[k]/(values[k] + average)), rel=1e-5)
    for k in range(count - 1, min(dim, width)): assert encoder.neck.weight[k].item() < 1e-5  # no variance there
    rest = slice(min(dim, width), dim)                                         # wider than the body: as before
    assert torch.equal(encoder.project.weight[rest], before["project.weight"][rest])


@pytest.mark.parametrize("features", [torch.ones(1, 4), torch.ones(5, 4)])
def test_equal_features_cannot_be_whitened(features):
    with pytest.raises(DataError, match="do not differ.*more pictures"):
        whiten_projection(Encoder(nn.Identity(), 4, 3), features)


# ---------------------------------------------------------------- learning rates

EARLY = {"micro": "body.stem.", "resnet18": ("body.conv1.", "body.bn1."), "convnext_atto": "body.stem.",
         "densenet121": ("body.features.conv0.", "body.features.norm0."),
         "mobilenetv3_small_050": ("body.conv_stem.", "body.bn1.")}


@pytest.mark.parametrize("name", EARLY)
def test_every_trainable_parameter_has_one_rate(name):
    encoder = build_encoder(name, (32, 32), 6)
    next(encoder.body.parameters()).requires_grad_(False)              # the first convolution is frozen
    groups = parameter_groups(encoder, .02, early=.25)
    rates = [(id(p), g["lr"], g["base_lr"]) for g in groups for p in g["params"]]
    expected = {id(p): .25*.02 if n.startswith(EARLY[name]) else .02
                for n, p in encoder.named_parameters() if p.requires_grad}
    assert len(rates) == len(expected) == len({i for i, _, _ in rates})
    assert all(lr == base == expected[i] for i, lr, base in rates)
    assert {lr for _, lr, _ in rates} == {.25*.02, .02}
    torch.optim.Adam(groups)


@pytest.mark.parametrize("length, periods, floor", [(10, 1, 0.), (7, 3, .01), (25, 2, .3), (1, 4, .1)])
def test_schedule_is_torchs_warm_restarts(length, periods, floor):
    optimiser = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=2.)
    theirs = torch.optim.lr_scheduler.CosineAnnealingWarmRestarts(optimiser, T_0=length, T_mult=1, eta_min=2*floor)
    for step in range(length*periods):
        factor = cosine_restarts(step, length*periods, periods=periods, floor=floor)
        assert optimiser.param_groups[0]["lr"] == pytest.approx(2*factor, abs=1e-12)
        optimiser.step()
        theirs.step()


@pytest.mark.parametrize("warmup, total, periods", [(5, 25, 2), (1, 4, 1), (3, 3, 1), (10, 110, 7)])
def test_warm_up_is_a_ramp_and_then_the_same_schedule(warmup, total, periods):
    for step in range(warmup): assert cosine_restarts(step, total, periods, warmup) == pytest.approx((step + 1)/warmup)
    for step in range(warmup, total):
        assert cosine_restarts(step, total, periods, warmup) == cosine_restarts(step - warmup, total - warmup, periods)


@given(st.integers(1, 40), st.integers(1, 12))
def test_every_whole_restart_is_at_full_rate(part, periods):
    "Period lengths are fractions in general: rounding must not put a restart at the end of the period before."
    total = part*periods//math.gcd(part, periods)*3
    for j in range(periods):
        if total*j % periods == 0: assert cosine_restarts(total*j//periods, total, periods=periods, floor=0) == 1
    assert cosine_restarts(5, 10, periods=6, floor=0) == 1


@given(st.integers(0, 300), st.integers(1, 300), st.integers(1, 12), st.integers(0, 50), st.floats(0, 1))
def test_factor_stays_between_floor_and_one(step, total, periods, warmup, floor):
    factor = cosine_restarts(step, total, periods, warmup, floor)
    assert (0 if step < warmup else floor) - 1e-12 <= factor <= 1 + 1e-12


# ---------------------------------------------------------------- EMA

def test_ema_is_independent_and_has_no_gradients():
    fast = build_encoder("micro", (16, 16), 6).train()
    slow = make_ema(fast)
    assert fast.training and fast.project.weight.requires_grad
    assert not any(m.training for m in slow.modules()) and not any(p.requires_grad for p in slow.parameters())
    assert same(slow.state_dict(), fast.state_dict())
    assert not {p.data_ptr() for p in slow.state_dict().values()} & {p.data_ptr() for p in fast.state_dict().values()}
    assert not slow(torch.randn(2, 3, 16, 16)).requires_grad


@pytest.mark.parametrize("momentum", [0., .5, .99, 1.])
def test_update_ema_is_the_moving_average(momentum):
    fast = stir(build_encoder("micro", (16, 16), 6))
    slow = make_ema(fast)
    expected = {k: val(v) for k, v in slow.state_dict().items()}
    for step in range(3):
        stir(fast, seed=step + 1).train()(torch.randn(4, 3, 16, 16))   # moves the statistics and counts batches
        before = {k: v.clone() for k, v in fast.state_dict().items()}
        update_ema(slow, fast, momentum)
        assert same(fast.state_dict(), before)
        for k, v in before.items():
            expected[k] = momentum*expected[k] + (1 - momentum)*val(v) if v.is_floating_point() else val(v)
    assert sum(k.endswith("num_batches_tracked") for k in expected) == 4 and any("running_var" in k for k in expected)
    for k, v in slow.state_dict().items():
        np.testing.assert_allclose(val(v), expected[k], atol=1e-5)
        if k.endswith("num_batches_tracked"): assert v == 3 and v.dtype == torch.int64
    assert not any(p.requires_grad for p in slow.parameters())


def test_update_ema_refuses_another_model():
    with pytest.raises(ValueError): update_ema(nn.Linear(2, 2, bias=False), nn.Linear(2, 2), .9)


# ---------------------------------------------------------------- cost

def hand_count(shape, size, dim):
    "Parameters and multiplications, layer by layer."
    h, w, c, params, mac = *size, 3, 0, 0
    for out, s in zip(shape.stem, shape.strides):
        h, w = h//s, w//s
        params += out*c*9 + 2*out
        mac += h*w*out*c*9
        c = out
    h, w, d = h//shape.patch, w//shape.patch, shape.width
    n = h*w
    params += d*c*shape.patch**2 + d + n*d
    mac += n*d*c*shape.patch**2
    params += shape.depth*(2*2*d + d*3*d + 3*d + d*d + d + d*4*d + 4*d + 4*d*d + d) + 2*d
    mac += shape.depth*(n*d*3*d + 2*n*n*d + n*d*d + 2*n*d*4*d)
    return params + d*dim + dim + 2*dim, mac + d*dim


@pytest.mark.parametrize("shape, size", [(SHAPES["micro"], (48, 24)), (TOY, (16, 8))])
def test_cost_by_hand(shape, size):
    encoder = Encoder(StemViT(shape, size), shape.width, 10)
    got, (params, mac) = forward_cost(encoder, size), hand_count(shape, size, 10)
    assert got["parameters_M"]*1e6 == pytest.approx(params) and got["GMAC"]*1e9 == pytest.approx(mac)
    assert got["GFLOP"] == 2*got["GMAC"]


def test_cost_leaves_the_model_as_it_was():
    encoder = build_encoder("micro", (16, 16), 6).train()
    encoder.neck.eval()
    modes, before = [m.training for m in encoder.modules()], copy.deepcopy(encoder.state_dict())
    forward_cost(encoder, (16, 16))
    assert modes == [m.training for m in encoder.modules()] and same(encoder.state_dict(), before)
    with pytest.raises(RuntimeError): forward_cost(encoder, (32, 16))         # another number of tokens
    assert modes == [m.training for m in encoder.modules()] and encoder.project.weight.requires_grad


def test_both_deit_stems_have_deits_blocks():
    "The fine stem has the same blocks and four times the tokens."
    with torch.device("meta"):
        coarse, fine = (StemViT(SHAPES[name], (256, 128)) for name in ("deit_small", "deit_small_fine"))
    for body in (coarse, fine):
        assert sum(p.numel() for p in body.blocks.parameters()) == 12*(4*384 + 12*384**2 + 9*384)
    assert fine.pos_embed.numel() == 4*coarse.pos_embed.numel()


# ---------------------------------------------------------------- instance norm in a ResNet

def naive_channel(values, weight, bias, mean=None, var=None):
    flat = list(np.ravel(values))
    if mean is None: mean = sum(flat)/len(flat)
    if var is None: var = sum((v - mean)**2 for v in flat)/len(flat)
    return (np.asarray(values) - mean)/math.sqrt(var + 1e-5)*weight + bias


@pytest.mark.parametrize("channels", [4, 5])
@pytest.mark.parametrize("training", [True, False])
def test_ibn_is_instance_norm_of_the_first_half_and_batch_norm_of_the_rest(channels, training):
    norm = stir(IBN(channels), channels).double().train(training)
    x = torch.randn(3, channels, 2, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)*2 + 1
    running = val(norm.BN.running_mean).copy(), val(norm.BN.running_var).copy()
    want = np.empty(x.shape)
    for c in range(channels):
        if c < channels//2:
            for b in range(3): want[b, c] = naive_channel(val(x[b, c]), val(norm.IN.weight)[c], val(norm.IN.bias)[c])
        else:
            k = c - channels//2
            known = (None, None) if training else (running[0][k], running[1][k])
            want[:, c] = naive_channel(val(x[:, c]), val(norm.BN.weight)[k], val(norm.BN.bias)[k], *known)
    np.testing.assert_allclose(val(norm(x)), want, atol=1e-12)
    if training:                        # 24 numbers a channel: the running variance is the sample's
        k = np.array([np.ravel(val(x[:, c])) for c in range(channels//2, channels)])
        np.testing.assert_allclose(val(norm.BN.running_mean), .9*running[0] + .1*k.mean(1), atol=1e-12)
        np.testing.assert_allclose(val(norm.BN.running_var),
                                   .9*running[1] + .1*((k - k.mean(1, keepdims=True))**2).sum(1)/23, atol=1e-12)


def test_instance_half_does_not_see_a_camera():
    norm = IBN(6).eval()
    x = torch.rand(2, 6, 8, 8)
    scale, shift = torch.rand(1, 6, 1, 1) + .5, torch.rand(1, 6, 1, 1)
    with torch.no_grad(): a, b = norm(x), norm(x*scale + shift)
    assert torch.allclose(a[:, :3], b[:, :3], atol=1e-2) and not torch.allclose(a[:, 3:], b[:, 3:], atol=1e-1)


def test_ibn_a_changes_the_first_norm_of_three_stages_and_no_size():
    plain, ibn = build_encoder("resnet50", (32, 16), 8, seed=3), build_encoder("resnet50_ibn_a", (32, 16), 8, seed=3)
    changed = [n for n, m in ibn.body.named_modules() if isinstance(m, IBN)]
    assert changed == [f"layer{s}.{b}.bn1" for s, blocks in ((1, 3), (2, 4), (3, 6)) for b in range(blocks)]
    count = lambda e: sum(p.numel() for p in e.parameters())
    assert count(plain) == count(ibn)
    assert all(torch.equal(v, plain.state_dict()[k])
               for k, v in ibn.state_dict().items() if ".bn1." not in k or "layer4" in k)
    with torch.no_grad(): f = ibn.eval()(torch.randn(2, 3, 32, 16))
    assert f.shape == (2, 8) and torch.allclose(f.norm(dim=1), torch.ones(2))
    known = [id(p) for g in parameter_groups(ibn, 1.) for p in g["params"]]
    assert len(known) == len(set(known)) == sum(p.requires_grad for p in ibn.parameters())


def test_weights_of_the_plain_network_are_divided_between_the_halves(tmp_path):
    with seeded_torch("plain"): state = stir(timm.create_model("resnet18")).state_dict()
    body = build_encoder("resnet18_ibn_a", (32, 16), 8, str(write(tmp_path/"plain.safetensors", state))).body
    for b in range(2):
        norm = body.layer2[b].bn1
        old = {k: state[f"layer2.{b}.bn1.{k}"] for k in ("weight", "bias", "running_mean", "running_var")}
        for k in ("weight", "bias"): assert torch.equal(torch.cat([getattr(norm.IN, k), getattr(norm.BN, k)]), old[k])
        for k in ("running_mean", "running_var"): assert torch.equal(getattr(norm.BN, k), old[k][64:])
    own = body.state_dict()
    assert all(torch.equal(v, own[k]) for k, v in state.items() if k in own)
    # and IBN's own as they are
    again = build_encoder("resnet18_ibn_a", (32, 16), 8, str(write(tmp_path/"ibn.safetensors", own))).body
    assert same(again.state_dict(), own)


def test_weights_for_ibn_that_miss_something_are_refused():
    with seeded_torch("fault"): body = timm.create_model("resnet18", num_classes=0)
    state = {k: v.clone() for k, v in body.state_dict().items()}
    use_ibn(body, "resnet18_ibn_a")
    given = dict(state)
    load_named(body, split_norms(body, state))
    assert same(state, given)           # the caller's weights are left alone
    del state["layer1.1.bn1.running_var"]
    with pytest.raises(DataError, match=r"layer1\.1\.bn1\.BN\.running_var"): load_named(body, split_norms(body, state))


def test_imagenet_weights_of_ibn_are_those_of_the_plain_network(monkeypatch):
    real, asked = timm.create_model, []
    monkeypatch.setattr(timm, "create_model",
                        lambda name, pretrained=False, **k: asked.append((name, pretrained)) or real(name, **k))
    build_encoder("resnet18_ibn_a", (32, 16), 8, "imagenet")
    assert asked == [("resnet18", False), ("resnet18", True)]


@pytest.mark.parametrize("name", ["mobilenetv3_small_050_ibn_a", "demo_ibn_a", "resnet51_ibn_a",
                                  "deit_tiny_patch16_224_ibn_a"])
def test_only_resnets_have_ibn(name):
    with pytest.raises(ConfigError, match=f"{name}.*resnet50"): build_encoder(name, (224, 224), 8)


# ---------------------------------------------------------------- the map before the mean

TOY_SWIN = dict(img_size=(64, 32), embed_dim=8, depths=(1, 1), num_heads=(1, 1), window_size=2)
TOY_VIT = dict(img_size=(32, 48), patch_size=16, embed_dim=12, depth=1, num_heads=2)


def timm_body(name, **toy):
    with seeded_torch("map"): return stir(timm.create_model(name, num_classes=0, **toy)).double().eval()


@pytest.mark.parametrize("name, size, grid, toy", [
    ("resnet18", (96, 64), (3, 2), {}), ("mobilenetv2_035", (96, 64), (3, 2), {}),
    ("swin_tiny_patch4_window7_224", (64, 32), (8, 4), TOY_SWIN)])
def test_mean_of_the_map_is_the_output_of_a_body_that_averages_last(name, size, grid, toy):
    body, x = timm_body(name, **toy), pictures(2, size)
    with torch.no_grad(): found, output, want = feature_map(body, x), map_and_output(body, x)[1], body(x)
    assert found.shape == (2, want.shape[1], *grid) and torch.equal(output, want)
    for b, c in itertools.product(range(2), range(want.shape[1])):
        mean = sum(found[b, c].flatten().tolist())/math.prod(grid)
        assert mean == pytest.approx(want[b, c].item(), rel=1e-9, abs=1e-9)


def test_map_of_our_body_has_its_tokens_row_by_row():
    body, x = toy_encoder().body, pictures(3)
    with torch.no_grad(): found, output, tokens = *map_and_output(body, x), body.tokens(x)
    assert found.shape == (3, 8, *body.grid) and body.grid == (2, 3) and torch.equal(output, body(x))
    for r, c in itertools.product(range(2), range(3)): assert torch.equal(found[:, :, r, c], tokens[:, 3*r + c])


@pytest.mark.parametrize("name, extra", [("vit_tiny_patch16_224", 1), ("deit_tiny_distilled_patch16_224", 2)])
def test_map_of_a_stock_transformer_leaves_its_class_tokens_out(name, extra):
    body, x = timm_body(name, **TOY_VIT), pictures(2, (32, 48))
    with torch.no_grad(): found, output, tokens = *map_and_output(body, x), body.forward_features(x)
    assert found.shape == (2, 12, 2, 3) and tokens.shape[1] == 6 + extra and torch.equal(output, body(x))
    for r, c in itertools.product(range(2), range(3)): assert torch.equal(found[:, :, r, c], tokens[:, extra + 3*r + c])


def test_output_is_the_bodys_own_where_it_normalises_after_averaging():
    body, x = timm_body("convnext_atto"), pictures(1, (64, 32))
    with torch.no_grad(): found, output = map_and_output(body, x)
    assert torch.equal(output, body(x)) and found.shape == (1, 320, 2, 1)
    assert not torch.allclose(found.mean((2, 3)), output)


def test_bodies_without_a_map_are_refused():
    with pytest.raises(ConfigError, match="Linear has no feature map.*micro"): feature_map(nn.Linear(3, 3), pictures(1))
    class Heap(nn.Module):
        def forward_features(self, x): return x.flatten(2)
        def forward_head(self, x): return x.mean(2)
    with pytest.raises(ConfigError, match="Heap has 3 tokens that fill no grid"): feature_map(Heap(), pictures(1))


def test_an_encoder_with_pixel_values_of_its_own_can_be_pickled():
    body = nn.Sequential(nn.Conv2d(3, 4, 1))
    rescale_input(body, (.5, .5, .5), (.5, .5, .5))
    x = torch.rand(1, 3, 2, 2)
    assert torch.equal(pickle.loads(pickle.dumps(body))(x), body(x))


def test_dimensions_beyond_the_bodys_width_are_off_at_a_whitened_start():
    g = torch.Generator().manual_seed(0)
    features = torch.randn(200, 4, generator=g)*100 + 50
    encoder = Encoder(nn.Identity(), 4, 6).eval()
    whiten_projection(encoder, features)
    out = encoder(features)
    assert (out[:, 4:] == encoder.neck.bias[4:]*0).all() and (out @ out.T).mean().abs() < .05
