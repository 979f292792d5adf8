"""Decoding against Pillow, the three homes of a bank, every augmentation undone by brute force, and the batch plans'
promises."""
import re
import warnings
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from PIL import Image

from upl_reid.data import image_bank as module
from upl_reid.core import DataError, seeded_torch
from upl_reid.data.image_bank import (
    IMAGENET_MEAN, IMAGENET_STD, Augmenter, ImageBank, make_augmenter, decode_images, free_memory, cgroup_free_memory,
    identity_order, plan_batches, normalise_images)

SIZE = (12, 6)


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    "Eight pictures of several sizes and kinds; the third is stored at the size that is asked for."
    folder, rng, found = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0), []
    for i, (h, w) in enumerate([(24, 12), (17, 9), SIZE, (5, 3), (12, 20), (40, 6), (12, 6), (30, 30)]):
        image = Image.fromarray(rng.integers(0, 256, (h, w, 3), dtype=np.uint8))
        if i == 4: image = image.convert("L")
        path = folder/f"{i}.{'png' if i % 2 else 'jpg'}"
        image.save(path)
        found.append(path)
    return found


@pytest.fixture(autouse=True)
def same_random_numbers():
    "No function of this module may touch the caller's generators."
    before, theirs = torch.get_rng_state(), np.random.get_state()[1].copy()
    yield
    assert torch.equal(before, torch.get_rng_state()) and np.array_equal(theirs, np.random.get_state()[1])


# ---------------------------------------------------------------- decoding

def test_decode_is_pillow_one_at_a_time(paths):
    got = decode_images(paths, SIZE)
    assert got.dtype == torch.uint8 and got.shape == (8, 3, *SIZE) and got.is_contiguous()
    for image, path in zip(got, paths):
        with Image.open(path) as theirs:
            expected = np.asarray(theirs.convert("RGB").resize((SIZE[1], SIZE[0]), Image.BICUBIC))
        for c in range(3): np.testing.assert_array_equal(image[c].numpy(), expected[:, :, c])


def test_stored_size_is_not_touched(paths):
    with Image.open(paths[2]) as theirs: expected = np.asarray(theirs.convert("RGB"))
    np.testing.assert_array_equal(decode_images([paths[2]], SIZE)[0].permute(1, 2, 0).numpy(), expected)


def test_decode_of_nothing(): assert decode_images([], SIZE).shape == (0, 3, *SIZE)


@pytest.mark.parametrize("content", [b"no image", b"", None])
def test_unreadable_image_is_named(tmp_path, paths, content):
    bad = tmp_path/"bad.jpg"
    if content is not None: bad.write_bytes(content)
    for use in (lambda: decode_images([*paths, bad, *paths], SIZE), lambda: ImageBank([*paths, bad], SIZE)):
        with pytest.raises(DataError, match=re.escape(str(bad))): use()


# ---------------------------------------------------------------- the bank


def bank_in(paths, home, monkeypatch):
    """The bank at one of its three homes, and what it said. The accelerator is played by the 'meta' device, whose
    batches are looked at before they leave."""
    sent = []
    if home == "device": return ImageBank(paths, SIZE, limit=8*3*12*6), [], sent
    real = torch.Tensor.to

    def to(self, where=None, *args, **kwargs):
        if isinstance(where, torch.device) and where.type == "meta": sent.append(self)
        return real(self, where, *args, **kwargs)
    monkeypatch.setattr(torch.Tensor, "to", to)
    monkeypatch.setattr(module, "free_memory", lambda device: 0 if device.type == "meta" or home == "disk" else 2**40)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        bank = ImageBank(paths, SIZE, "meta")
    return bank, [str(w.message) for w in said], sent


def test_three_homes_give_the_same_batches(paths, monkeypatch):
    index, full = torch.tensor([5, 0, 0, 7]), decode_images(paths, SIZE)
    for home, said in [("device", None), ("host", "8 images need .* more than meta allows: they stay in host memory"),
                       ("disk", "8 images need .* decoded again for every batch")]:
        with monkeypatch.context() as patch:
            bank, messages, sent = bank_in(paths, home, patch)
            batch = bank[index]
            assert len(bank) == 8 and batch.shape == (4, 3, *SIZE) and batch.dtype == torch.uint8
            assert (bank.images is None) == (home == "disk")
            assert bank.home == (None if home == "disk" else torch.device("cpu"))
            if said is None: assert not messages
            else:
                assert len(messages) == 1 and re.search(said, messages[0]) and batch.device.type == "meta"
                batch = sent[-1]
            assert torch.equal(batch, full[index])


def test_bank_beyond_memory_lies_in_a_file_without_a_name(paths, tmp_path, monkeypatch):
    with pytest.warns(UserWarning, match="they lie in a file in"):
        bank = ImageBank(paths, SIZE, limit=0, folder=tmp_path)
    assert not list(tmp_path.iterdir())
    if Path("/proc/self/maps").exists():
        assert any(str(tmp_path) in line and "(deleted)" in line for line in open("/proc/self/maps"))
    assert torch.equal(bank[torch.tensor([5, 0, 7])], decode_images(paths, SIZE)[[5, 0, 7]])
    monkeypatch.setattr(module.shutil, "disk_usage", lambda folder: type("usage", (), dict(free=8*3*12*6*2 - 1)))
    with pytest.warns(UserWarning, match="more than memory and .* allows: they are decoded again"):
        bank = ImageBank(paths, SIZE, limit=0, folder=tmp_path)
    assert bank.images is None and torch.equal(bank[torch.tensor([5, 0, 7])], decode_images(paths, SIZE)[[5, 0, 7]])


def test_host_bank_without_limit_says_nothing(paths):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        bank = ImageBank(paths, SIZE)
    assert torch.equal(bank.images, decode_images(paths, SIZE))


@pytest.mark.parametrize("limit, held", [(8*3*12*6, True), (8*3*12*6 - 1, False), (0, False)])
def test_limit_is_the_most_bytes_held(paths, limit, held):
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        bank = ImageBank(paths, SIZE, limit=limit)
    assert (bank.images is not None) == held and len(said) == (not held)
    assert torch.equal(bank[torch.arange(8)], decode_images(paths, SIZE))


def test_half_of_what_is_free_is_the_default_limit(paths, monkeypatch):
    for free, held in [(2*8*3*12*6, True), (2*8*3*12*6 - 2, False)]:
        monkeypatch.setattr(module, "free_memory", lambda device: free)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            assert (ImageBank(paths, SIZE).images is not None) == held


@pytest.mark.skipif(not Path("/proc/meminfo").is_file(), reason="only Linux tells")
def test_free_memory_is_what_linux_calls_available():
    psutil = pytest.importorskip("psutil")
    available = min(psutil.virtual_memory().available, cgroup_free_memory())
    assert free_memory(torch.device("cpu")) == pytest.approx(available, rel=.25)


@pytest.mark.parametrize("line, top, names", [
    ("0::/jobs/7/step", "", ("memory.max", "memory.current", "inactive_file")),
    ("4:memory:/jobs/7/step", "memory",
     ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"))])
def test_a_batch_job_has_the_memory_that_it_was_given(tmp_path, monkeypatch, line, top, names):
    "The limit may lie on the group itself or on one around it; the least room counts."
    (tmp_path/"cgroup").write_text(f"3:cpuset:/\n{line}\n")
    def group(path, most, taken, cache):
        (tmp_path/"fs"/top/path).mkdir(parents=True, exist_ok=True)
        texts = (f"{most}\n", f"{taken}\n", f"anon 3\n{names[2]} {cache}\nactive_file 1\n")
        for name, text in zip((names[0], names[1], "memory.stat"), texts):
            (tmp_path/"fs"/top/path/name).write_text(text)
    room = lambda: cgroup_free_memory(tmp_path/"cgroup", tmp_path/"fs")
    assert room() == float("inf")
    group("jobs/7/step", 2**63 - 4096 if top else "max", 100, 0)
    assert room() > 2**62
    group("jobs/7", 1000, 600, 50)
    assert room() == 450
    group("jobs", 5000, 4900, 20)
    assert room() == 120
    import upl_reid.data.image_bank as module
    monkeypatch.setattr(module, "cgroup_free_memory", room)
    assert free_memory(torch.device("cpu")) == 120


def test_changing_a_batch_leaves_the_bank_alone(paths):
    bank = ImageBank(paths, SIZE)
    bank[torch.arange(8)].zero_()
    assert torch.equal(bank.images, decode_images(paths, SIZE))


def test_empty_list_is_refused():
    with pytest.raises(DataError, match="at least one image"): ImageBank([], SIZE)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_bank_on_a_gpu(paths):
    bank = ImageBank(paths, SIZE, "cuda")
    decoded = decode_images([paths[3], paths[1]], SIZE)
    assert bank.images.is_cuda and torch.equal(bank[torch.tensor([3, 1])].cpu(), decoded)
    on_cpu = normalise_images(bank.images.cpu())
    torch.testing.assert_close(normalise_images(bank.images).cpu(), on_cpu, atol=1e-6, rtol=0)


# ---------------------------------------------------------------- augmentation

def photos(n, size=(20, 10), seed=0):
    return torch.from_numpy(np.random.default_rng(seed).integers(0, 256, (n, 3, *size), dtype=np.uint8))


def test_prepare_is_a_loop(paths):
    x = photos(2, (4, 3))
    before = x.clone()
    got = normalise_images(x)
    assert got.dtype == torch.float32 and torch.equal(x, before)
    for (n, c, i, j), v in np.ndenumerate(x.numpy()):
        assert got[n, c, i, j].item() == pytest.approx((float(v)/255 - IMAGENET_MEAN[c])/IMAGENET_STD[c], abs=2e-6)


def undo(x): return x*torch.tensor(IMAGENET_STD).view(-1, 1, 1) + torch.tensor(IMAGENET_MEAN).view(-1, 1, 1)


def test_without_jitter_and_erasing_every_picture_is_a_padded_crop_perhaps_flipped():
    "All flips and all offsets are tried; exactly one has to explain each picture."
    size, x = (52, 16), photos(24, (52, 16))
    with seeded_torch("crop"): got = undo(make_augmenter(size, jitter=0., erase=0.)(x))
    pad = 2                                                            # 10 pixels at a height of 256
    found = []
    for image, out in zip(x.float()/255, got):
        hits = []
        for flip in (0, 1):
            padded = torch.nn.functional.pad(image.flip(-1) if flip else image, (pad,)*4)
            hits += [(flip, i, j) for i in range(2*pad + 1) for j in range(2*pad + 1)
                     if (padded[:, i:i + 52, j:j + 16] - out).abs().max() < 2e-3]
        assert len(hits) == 1
        found += hits
    flips, rows, cols = map(set, zip(*found))
    # both ends are reached, and not the same one by all
    assert flips == {0, 1} and rows >= {0, 4} and cols >= {0, 4}
    assert len(set(found)) > 12


def test_jitter_changes_colours_one_picture_at_a_time():
    grey = torch.full((40, 3, 32, 16), 128, dtype=torch.uint8)
    with seeded_torch("jitter"): got = undo(make_augmenter((32, 16), jitter=.2, erase=0.)(grey))
    centre = got[:, :, 8:24, 4:12].flatten(2)
    assert (centre.amax(2) - centre.amin(2)).max() < 1e-4              # a flat picture stays flat
    level = centre.mean((1, 2))
    # a shift of at most .2 and a factor of .8 to 1.2, in either order
    assert level.unique().numel() > 20
    assert level.min() > .8*128/255 - .2 - 1e-4 and level.max() < 1.2*(128/255 + .2) + 1e-4
    assert 1 <= ((level - 128/255).abs() < 1e-4).sum() <= 20           # one in five keeps its colours


def test_erased_patch_is_the_mean_colour():
    "Pictures of plain white: after normalisation no pixel but an erased one is exactly 0."
    white = torch.full((60, 3, 64, 32), 255, dtype=torch.uint8)
    with seeded_torch("erase"): got = make_augmenter((64, 32), jitter=0., erase=.5)(white)
    hole = (got == 0).all(1)
    assert torch.equal(hole, (got == 0).any(1))
    erased = hole.flatten(1).any(1)
    assert 18 <= erased.sum() <= 42
    for mask in hole[erased]:
        rows, cols = mask.any(1).nonzero().flatten(), mask.any(0).nonzero().flatten()
        patch = mask[rows[0]:rows[-1] + 1, cols[0]:cols[-1] + 1]
        assert patch.all() and .01 < patch.numel()/(64*32) < .33       # one solid rectangle of 2 to 30 % of the area
    assert len({tuple(m.nonzero()[0].tolist()) for m in hole[erased]}) > 10


@pytest.mark.parametrize("erase, share", [(0., 0.), (1., 1.)])
def test_erase_is_a_share_of_the_pictures(erase, share):
    white = torch.full((20, 3, 64, 32), 255, dtype=torch.uint8)
    with seeded_torch("share"): got = make_augmenter((64, 32), jitter=0., erase=erase)(white)
    assert (got == 0).flatten(1).any(1).float().mean() == share


def test_same_seed_same_pictures_and_each_its_own():
    x = photos(1, (32, 16)).repeat(6, 1, 1, 1)
    before, change = x.clone(), make_augmenter((32, 16))
    with seeded_torch(1, "a"): a = change(x)
    with seeded_torch(1, "a"): b = make_augmenter((32, 16))(x)
    with seeded_torch(2, "a"): c = change(x)
    assert torch.equal(a, b) and not torch.equal(a, c) and torch.equal(x, before)
    assert a.dtype == torch.float32 and a.shape == (6, 3, 32, 16) and not a.requires_grad
    assert all(not torch.equal(a[i], a[j]) for i in range(6) for j in range(i))


@pytest.mark.parametrize("size", [(48, 24), (64, 32), (7, 5)])
def test_shape_stays(size):
    with seeded_torch("shape"): assert make_augmenter(size)(photos(3, size)).shape == (3, 3, *size)


def test_stages_meet_at_the_normalisation():
    "The first stage sees pixels in 0..1, the second normalised ones."
    seen = []
    class Look(torch.nn.Module):
        def forward(self, x): return seen.append(x.clone()) or x
    x = photos(2)
    out = Augmenter(Look(), Look())(x)
    torch.testing.assert_close(seen[0], x/255.)
    torch.testing.assert_close(seen[1], normalise_images(x))
    torch.testing.assert_close(out, normalise_images(x))
    assert not Augmenter(Look(), Look()).state_dict()                  # constants, not weights


# ---------------------------------------------------------------- batches

@given(st.lists(st.integers(0, 5), max_size=25), st.integers(0, 2**32))
def test_identity_order_goes_round_the_cameras(cams, seed):
    order = identity_order(np.array(cams, dtype=np.int64), np.random.default_rng(seed))
    assert sorted(order.tolist()) == list(range(len(cams)))
    total, done = Counter(cams), Counter()
    for i in order:
        waiting = [c for c in total if done[c] < total[c]]
        # no camera gives again while another with images left has given less
        assert done[cams[i]] == min(done[c] for c in waiting)
        done[cams[i]] += 1


def test_identity_order_starts_with_every_image():
    cams = np.array([0, 0, 0, 1, 1, 2])
    firsts = Counter(int(identity_order(cams, np.random.default_rng(s))[0]) for s in range(400))
    assert set(firsts) == set(range(6))
    per_camera = Counter(int(cams[i]) for i in firsts.elements())
    assert min(per_camera.values()) > 90            # the first camera is drawn fairly, whatever it holds


@st.composite
def data_sets(draw):
    n = draw(st.integers(2, 60))
    labels = draw(st.lists(st.integers(-1, draw(st.integers(1, 12))), min_size=n, max_size=n))
    labels[:2] = [0, 3]                                                # at least two identities, numbers with gaps
    return np.array(labels), np.array(draw(st.lists(st.integers(0, 4), min_size=n, max_size=n)))


@settings(max_examples=60)
@given(data_sets(), st.integers(1, 8), st.integers(1, 6), st.integers(0, 12), st.integers(0, 2**40))
def test_plan_keeps_its_promises(data, P, K, steps, seed):
    labels, camids = data
    before = labels.copy(), camids.copy()
    plan = plan_batches(labels, camids, P, K, steps, seed)
    ids = sorted(set(labels.tolist()) - {-1})
    assert plan.dtype == np.int64 and plan.shape == (steps, min(P, len(ids))*K)
    assert np.array_equal(plan, plan_batches(labels, camids, P, K, steps, seed))
    assert np.array_equal(labels, before[0]) and np.array_equal(camids, before[1])
    drawn = []
    for batch in plan.reshape(steps, min(P, len(ids)), K):
        people = []
        for rows in batch:
            person = set(labels[rows].tolist())
            assert len(person) == 1 and person != {-1}
            people += person
            own = np.flatnonzero(labels == people[-1])
            uses = Counter(rows.tolist())
            least = min(uses.values()) if len(uses) == len(own) else 0
            assert len(uses) == min(K, len(own)) and max(uses.values()) - least <= 1
            assert len(set(camids[rows].tolist())) == min(K, len(set(camids[own].tolist())))
        assert len(set(people)) == len(people)
        drawn += people
    for start in range(0, len(drawn), len(ids)):    # nobody a second time before everybody had a turn
        turn = drawn[start:start + len(ids)]
        assert len(set(turn)) == len(turn)


@pytest.mark.parametrize("n, P", [(7, 3), (5, 4), (10, 10), (9, 2), (2, 2)])
def test_in_the_long_run_everybody_is_drawn_equally_often(n, P):
    labels = np.repeat(np.arange(n), 3)
    drawn = labels[plan_batches(labels, np.zeros(3*n, int), P, 2, 41, seed=1)].reshape(-1, 2)[:, 0]
    counts = np.bincount(drawn, minlength=n)
    assert counts.max() - counts.min() <= 1


def test_plans_of_different_seeds_differ_and_every_image_gets_its_turn():
    labels, camids = np.repeat(np.arange(6), 8), np.tile(np.arange(4), 12)
    plans = [plan_batches(labels, camids, 3, 4, 40, seed) for seed in range(3)]
    assert not np.array_equal(plans[0], plans[1]) and not np.array_equal(plans[1], plans[2])
    assert all(set(p.ravel().tolist()) == set(range(48)) for p in plans)


def test_small_identities_go_round_again():
    plan = plan_batches(np.array([0, 0, 1, -1, -1]), np.array([0, 1, 0, 0, 1]), 16, 5, 4, seed=0)
    assert plan.shape == (4, 10)                                       # two identities though sixteen were wanted
    for batch in plan.reshape(4, 2, 5):
        one, two = sorted(batch.tolist(), key=max, reverse=True)
        assert one == [2]*5 and sorted(Counter(two).values()) == [2, 3] and two[:2] == two[2:4] and set(two) == {0, 1}


@pytest.mark.parametrize("labels, count", [([-1, -1, -1], 0), ([4, 4, -1], 1), ([], 0)])
def test_fewer_than_two_identities(labels, count):
    with pytest.raises(DataError, match=f"at least 2 identities, the labels have {count}"):
        plan_batches(np.array(labels, dtype=np.int64), np.zeros(len(labels), int), 4, 4, 1, 0)


def test_labels_may_be_tensors():
    labels, camids = np.repeat(np.arange(3), 4), np.tile([0, 1], 6)
    of_tensors = plan_batches(torch.tensor(labels), torch.tensor(camids), 2, 2, 3, 0)
    assert np.array_equal(of_tensors, plan_batches(labels, camids, 2, 2, 3, 0))


def test_plans_need_a_camera_for_each_label():
    with pytest.raises(DataError, match="3 labels beside 2 cameras"):
        plan_batches(np.array([0, 0, 1]), np.array([0, 1]), 4, 4, 2, 0)
