"What a method may declare, what registering refuses, and what the loop checks of a method's answers."
import ast, inspect, random
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import upl_reid.methods
from upl_reid.components.encoder import build_encoder
from upl_reid.core import ConfigError, DataError
from upl_reid.data.benchmarks import load_domain
from upl_reid.data.image_bank import ImageBank
from upl_reid.data.splits import Split
from upl_reid.data.synthetic import write_domain
from upl_reid.experiments import runs
from upl_reid.experiments.config import PRESETS, RunConfig, load_methods
from upl_reid.methods.baseline import GlobalDBSCAN
from upl_reid.methods.upl import UPL
from upl_reid.training import distributed
from upl_reid.training.loop import fit, train_step
from upl_reid.training.method import METHODS, Batch, Budget, Method, PseudoLabels, constructor_parameters, register

SIZE = (48, 24)


@pytest.fixture
def names():
    "Removes the methods that a test has registered."
    before = dict(load_methods())
    yield
    METHODS.clear(); METHODS.update(before)


def made(config, monkeypatch):
    "The method that a run would train, without pretraining an encoder for it."
    monkeypatch.setattr(runs, "pretraining_configs", lambda config: [])
    empty = Split([], np.zeros(0, int), np.zeros(0, int))
    return runs.make_method(config, empty, None, runs.Workplace(torch.device("cpu"), None, None, False))


# -- momentum ----------------------------------------------------------------------------------------------------------


class Own(Method):
    "Declares a momentum of its own."
    def __init__(self, encoder, momentum=.5, **kwargs): super().__init__(encoder, momentum, **kwargs)

class Inherits(Own):
    "Has the momentum of its base."
    def __init__(self, encoder, k=3, **kwargs): super().__init__(encoder, **kwargs)

class SameNumber(Method):
    "Declares the same number as `Method`, which is a declaration all the same."
    def __init__(self, encoder, momentum=.99, **kwargs): super().__init__(encoder, momentum, **kwargs)

class Plain(Method):
    "Declares nothing about momentum."
    def __init__(self, encoder, k=3, **kwargs): super().__init__(encoder, **kwargs)

class Closed(Method):
    "Takes no momentum at all."
    def __init__(self, encoder, k=3): super().__init__(encoder, momentum=.25)


@pytest.mark.parametrize("preset", ["tiny", "demo"])
@pytest.mark.parametrize("cls, own", [(Own, .5), (Inherits, .5), (SameNumber, .99), (Plain, None)])
def test_a_declared_momentum_is_kept_and_arguments_say_what_holds(names, monkeypatch, cls, own, preset):
    register("trial")(cls)
    expected = PRESETS[preset].momentum if own is None else own
    config = RunConfig(preset, "plaza", "campus", "trial")
    assert config.arguments["momentum"] == made(config, monkeypatch).momentum == expected
    given = RunConfig(preset, "plaza", "campus", "trial", dict(momentum=.7))
    assert given.arguments["momentum"] == made(given, monkeypatch).momentum == .7


def test_a_constructor_without_momentum_is_not_given_one(names, monkeypatch):
    register("trial")(Closed)
    config = RunConfig("tiny", "plaza", "campus", "trial")
    assert config.arguments == dict(k=3) and made(config, monkeypatch).momentum == .25
    with pytest.raises(ConfigError, match="no argument 'momentum'"):
        RunConfig("tiny", "plaza", "campus", "trial", dict(momentum=.9))


def test_the_methods_of_the_package_have_the_presets_momentum():
    for name, cls in load_methods().items(): assert cls.preset_arguments(.123) == dict(momentum=.123), name


def test_the_identifier_hashes_the_declared_default_and_what_is_given_against_the_preset():
    config = RunConfig("tiny", "plaza", "campus", "dbscan")
    assert config.hashed_arguments["momentum"] == .99
    assert config.arguments["momentum"] == PRESETS["tiny"].momentum != .99
    given = RunConfig("tiny", "plaza", "campus", "dbscan", dict(momentum=.99))       # the default, against the preset's
    assert given.arguments["momentum"] == .99 and given.id != config.id
    given = {}, dict(threshold=0.), dict(eps=.5)
    names = {RunConfig("paper-cgc", "", "market1501", "cgc", args).id for args in given}
    assert len(names) == 3
    same = RunConfig("demo", "plaza", "campus", "dbscan", dict(momentum=.99))        # here the preset's is the default
    assert same.id == RunConfig("demo", "plaza", "campus", "dbscan").id


# -- names and constructors --------------------------------------------------------------------------------------------


def test_a_taken_name_is_refused_and_the_first_class_stays(names):
    with pytest.raises(ConfigError,
                       match="'upl' is taken by upl_reid.methods.upl.UPL; register .*Plain under another name"):
        register("upl")(Plain)
    assert METHODS["upl"] is UPL


def test_a_cell_that_runs_again_replaces_its_class(names):
    def cell():
        @register("trial")
        class Mine(Method): pass
        return Mine
    first, second = cell(), cell()
    assert first is not second and METHODS["trial"] is second


def test_a_class_of_a_notebook_and_its_module_are_one(names):
    "A notebook defines its class in __main__, and may import the exported module afterwards."
    in_notebook = type("UPL", (Method,), dict(__module__="__main__", __qualname__="UPL"))
    register("upl")(in_notebook)
    assert register("upl")(UPL) is UPL is METHODS["upl"]
    stranger = type("UPL", (Method,), dict(__module__="elsewhere", __qualname__="UPL"))
    with pytest.raises(ConfigError, match="taken by upl_reid"): register("upl")(stranger)


def test_an_argument_without_a_default_is_refused(names):
    class Needs(Method):
        def __init__(self, encoder, k, **kwargs): super().__init__(encoder, **kwargs)
    class Below(Needs):
        def __init__(self, encoder, depth=2, **kwargs): super().__init__(encoder, **kwargs)
    class Gives(Needs):
        def __init__(self, encoder, depth=2): super().__init__(encoder, depth)
    for cls in (Needs, Below):
        with pytest.raises(ConfigError, match="argument 'k' of .* has no default.*give it a default"):
            register("trial")(cls)
    assert "trial" not in METHODS and register("trial")(Gives) is Gives and Gives.arguments() == dict(depth=2)


def test_a_default_that_is_no_plain_value_is_refused(names):
    class Bends(Method):
        def __init__(self, encoder, act=torch.relu, **kwargs): super().__init__(encoder, **kwargs)
    with pytest.raises(ConfigError, match="default of argument 'act' is no plain value"): register("trial")(Bends)
    assert "trial" not in METHODS


@pytest.mark.parametrize("extra, asks", [("pids", "needs_identities"), ("meta", "needs_meta"), ("twin", "needs_twin")])
def test_what_a_run_supplies_must_be_asked_for(names, extra, asks):
    source = f"def __init__(self, encoder, {extra}, **kwargs): super(Wants, self).__init__(encoder, **kwargs)"
    space = {}
    exec(source, space)
    Wants = type("Wants", (Method,), dict(__init__=space["__init__"]))
    with pytest.raises(ConfigError, match=f"set {asks} = True"): register("trial")(Wants)
    setattr(Wants, asks, True)
    assert register("trial")(Wants) is Wants and extra not in Wants.arguments()


def test_parameters_follow_keyword_arguments_only(names):
    assert list(constructor_parameters(Inherits)) == ["encoder", "momentum", "scale", "average", "recluster", "k"]
    assert list(constructor_parameters(Closed)) == ["encoder", "k"]


# -- what relabel returns ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    domain = load_domain("campus",
            write_domain("campus", tmp_path_factory.mktemp("method"), train_ids=6, test_ids=2, cameras=3, size=SIZE))
    return domain, ImageBank(domain.train.paths, SIZE)


def good(n): return PseudoLabels(torch.arange(n) % 3, None, torch.ones(n), torch.eye(3, 16))


@pytest.mark.parametrize("wrong, error, says", [
    (lambda n: None, TypeError, "Answers.relabel returned NoneType; it must return PseudoLabels"),
    (lambda n: (torch.zeros(n), torch.ones(n)), TypeError, "Answers.relabel returned tuple"),
    (lambda n: torch.zeros(n).long(), TypeError, "Answers.relabel returned Tensor"),
    (lambda n: good(n - 1), DataError, r"Answers.relabel returned \d+ labels for \d+ images"),
    (lambda n: PseudoLabels([0]*n, None, torch.ones(n), torch.eye(3)), DataError,
     r"PseudoLabels.hard must be an int64 tensor of shape \(N,\), not list"),
    (lambda n: PseudoLabels(torch.zeros(n), None, torch.ones(n), torch.eye(3)), DataError,
     "PseudoLabels.hard must be an int64 tensor.*float32"),
    (lambda n: PseudoLabels(np.zeros(n, int), None, torch.ones(n), torch.eye(3)), DataError,
     "PseudoLabels.hard .* not ndarray"),
    (lambda n: PseudoLabels(good(n).hard, good(n).hard, torch.ones(n), torch.eye(3)), DataError,
     r"PseudoLabels.soft .* shape \(N, K\)"),
    (lambda n: PseudoLabels(good(n).hard, None, None, torch.eye(3)), DataError, "PseudoLabels.weight .* not NoneType"),
    (lambda n: PseudoLabels(good(n).hard, None, torch.ones(n).long(), torch.eye(3)), DataError,
     "PseudoLabels.weight must be a floating-point tensor"),
    (lambda n: PseudoLabels(good(n).hard, None, torch.ones(n), torch.ones(3)), DataError,
     r"PseudoLabels.centroids .* shape \(K, d\)"),
    (lambda n: PseudoLabels(torch.full((n,), 3), None, torch.ones(n), torch.eye(3)), DataError,
     "pseudo-labels disagree")])
def test_a_wrong_answer_of_relabel_is_named(world, wrong, error, says):
    domain, bank = world
    class Answers(Method):
        def relabel(self, features, camids, round): return wrong(len(features))
    with pytest.raises(error, match=says):
        fit(Answers(build_encoder("micro", SIZE, 16)), bank, domain.train.camids, Budget(1, 1, identities=3), 0,
            progress=False)


# -- processes ---------------------------------------------------------------------------------------------------------


def imported(module):
    "Modules and names that a module's source imports."
    tree = ast.parse(Path(module).read_text(encoding="utf-8"))
    return {n.module or ""
            for n in ast.walk(tree) if isinstance(n,
                    ast.ImportFrom)} | {a.name for n in ast.walk(tree) if isinstance(n, (ast.Import,
                            ast.ImportFrom)) for a in n.names}


def test_methods_import_nothing_about_processes():
    files = sorted(Path(upl_reid.methods.__path__[0]).glob("*.py")) + [Path(inspect.getfile(Method))]
    assert len(files) > 8
    for file in files: assert not any("distributed" in name for name in imported(file)), file.name


def test_the_loop_embeds_whole_batches_in_relabel_and_before_update(world, monkeypatch):
    domain, bank = world
    shared = {}
    monkeypatch.setattr(distributed, "process_count", lambda: 1)
    class Spy(Method):
        def relabel(self, features, camids, round):
            shared["relabel"] = distributed._whole.get(); return good(len(features))
        def losses(self, features, batch):
            shared["losses"] = distributed._whole.get(); return super().losses(features, batch)
        def before_update(self, batch): shared["before_update"] = distributed._whole.get()
    fit(Spy(build_encoder("micro", SIZE, 16)), bank, domain.train.camids, Budget(1, 1, identities=3), 0, progress=False)
    assert shared == dict(relabel=True, losses=False, before_update=True)


def test_the_loop_averages_the_state_that_before_update_returns(monkeypatch):
    "Two processes, played by one: the other's value is three times this one's, so the mean is twice it."
    monkeypatch.setattr(distributed, "process_count", lambda: 2)
    monkeypatch.setattr(distributed.dist, "all_reduce", lambda t, op=None: t.mul_(4))
    class Meta(Method):
        def __init__(self, encoder, **kwargs):
            super().__init__(encoder, **kwargs)
            self.register_buffer("changed", torch.ones(2)); self.register_buffer("own", torch.ones(2))
        def features(self, batch): return self.encoder(batch.images)
        def losses(self, features, batch): return dict(sum=features.sum())
        def before_update(self, batch): self.changed.add_(1); return [self.changed]
        def after_step(self, batch): pass
    method = Meta(nn.Linear(2, 2))
    batch = Batch(torch.ones(3, 2), *[torch.zeros(3)]*5, seed=0, step=0, lr=.1)
    train_step(method, batch, (torch.optim.SGD(method.encoder.parameters(), lr=.1),), 5.)
    assert method.changed.tolist() == [4., 4.] and method.own.tolist() == [1., 1.]


@pytest.mark.parametrize("losses, weights, message", [
    (lambda x: x.mean(), {}, r"Own.losses gave Tensor; return a dictionary"),
    (lambda x: dict(a=x.mean(1)), {}, r"Own.losses gave Tensor of shape \(3,\) for 'a'; return"),
    (lambda x: dict(a=x.mean(), b=None), {}, r"Own.losses gave NoneType for 'b'"),
    (lambda x: dict(a=x.detach().mean(), b=2.), {}, r"Own.losses gave nothing that depends on the network \(a, b\)"),
    (lambda x: {}, {}, r"nothing that depends on the network \(no loss\)"),
    (lambda x: dict(a=x.mean()), dict(a="1"), r"Own.loss_weights gave str for 'a'"),
    (lambda x: dict(a=x.mean()), [1.], r"Own.loss_weights gave list; return a dictionary")])
def test_losses_that_cannot_be_trained_on_are_named(losses, weights, message):
    class Own(Method):
        def features(self, batch): return self.encoder(batch.images)
        def losses(self, features, batch): return losses(features)
        def loss_weights(self): return weights
    method = Own(linear := nn.Linear(2, 2))
    before = linear.weight.clone()
    batch = Batch(torch.ones(3, 2), *[torch.zeros(3)]*5, seed=0, step=0, lr=.1)
    optimiser = torch.optim.SGD(method.encoder.parameters(), lr=.1)
    with pytest.raises(ConfigError, match=message): train_step(method, batch, (optimiser,), 5.)
    assert linear.weight.equal(before)


def test_weights_of_losses_may_be_numbers_of_any_kind():
    class Own(Method):
        def features(self, batch): return self.encoder(batch.images)
        def losses(self, features, batch): return dict(a=features.mean(), b=features.sum(), c=1)
        def loss_weights(self): return dict(a=np.float32(2), b=torch.tensor(.5))
    method = Own(nn.Linear(2, 2))
    batch = Batch(torch.ones(3, 2), *[torch.zeros(3)]*5, seed=0, step=0, lr=.1)
    values = train_step(method, batch, (torch.optim.SGD(method.encoder.parameters(), lr=.1),), 5.)
    assert float(values["loss"]) == pytest.approx(2*float(values["a"]) + .5*float(values["b"]) + 1)


def test_srmos_state_is_returned_after_a_meta_step_only(monkeypatch):
    from upl_reid.methods import upl
    method = UPL(build_encoder("micro", SIZE, 8), meta=(None, [0, 1], None))
    monkeypatch.setattr(upl, "loss_weight_gradient", lambda method, batch: torch.tensor([1., 0., 0., 0.]))
    def batch(step): return Batch(torch.zeros(1), *[torch.zeros(1)]*5, seed=0, step=step, lr=.1)
    assert method.before_update(batch(3)) is None
    changed = method.before_update(batch(10))
    assert all(any(t is b for b in method.srmo.buffers()) for t in changed)
    assert {name for name,
            b in method.srmo.named_buffers() if any(b is t for t in changed)} == {"logits", "average", "heading"}


def test_a_method_with_the_defaults_trains(world):
    domain, bank = world
    rows = []
    fit(GlobalDBSCAN(build_encoder("micro", SIZE, 16), k1=8, eps=.6, min_samples=2), bank, domain.train.camids,
        Budget(1, 2, identities=2), 0,
        progress=False, save=lambda tensors, row, round: rows.append(row))
    assert set(rows[0]) == {"epoch", "lr", "classes", "unused", "seconds", "relabel_seconds", "loss", "ce", "triplet"}


# -- ranges ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fields", [
    dict(steps=-5), dict(steps=0), dict(clip=-1.), dict(clip=0.), dict(erase=3.), dict(lr=-1.), dict(lr=float("nan")),
    dict(epochs=2.5), dict(epochs=float("nan")), dict(drops=(-1,)), dict(warmup=-1)], ids=str)
def test_numbers_of_a_budget_out_of_range_are_named(fields):
    with pytest.raises(ConfigError, match=next(iter(fields))): Budget(**{"epochs": 2, **fields})
    assert Budget(2, drops=()).drops == ()


@pytest.mark.parametrize("hard, weight, says", [
    ([0, -5], [1., 1.], "from -5 on"), ([0, 1], [1., float("nan")], "a weight is a number"),
    ([0, 1], [1., -1.], "a weight is a number"), ([], [], "of no images")], ids=["class", "nan", "negative", "none"])
def test_labels_and_weights_that_mean_nothing_are_named(hard, weight, says):
    parts = torch.tensor(hard, dtype=torch.int64), None, torch.tensor(weight), torch.eye(2)
    with pytest.raises(DataError, match=says): PseudoLabels(*parts)


# -- random numbers ----------------------------------------------------------------------------------------------------


class Draws(GlobalDBSCAN):
    "Takes random numbers from every global generator, in the constructor and in each hook of a round."
    def __init__(self, encoder, **kwargs):
        super().__init__(encoder, **kwargs)
        self.drawn = [random.random(), np.random.rand(), float(torch.rand(()))]
        self.proj = nn.Linear(2, 2)

    def look(self, bank, camids): self.drawn += [random.random(), np.random.rand(), float(torch.rand(()))]
    def start(self, budget, images): self.drawn += [random.random(), np.random.rand(), float(torch.rand(()))]

    def relabel(self, features, camids, round):
        self.drawn += [random.random(), np.random.rand(), float(torch.rand(()))]
        return super().relabel(features, camids, round)


def test_the_seed_decides_what_a_method_draws_from_global_generators(names, monkeypatch, tmp_path):
    register("trial")(Draws)
    domain = load_domain("plaza", write_domain("plaza", tmp_path, train_ids=4, test_ids=2, cameras=2, size=SIZE))
    bank = ImageBank(domain.train.paths, SIZE, torch.device("cpu"))
    def drawn(seed):
        method = made(RunConfig("tiny", "plaza", "campus", "trial", seed=seed), monkeypatch)
        fit(method, bank, domain.train.camids, Budget(1, 1, 2, 2), seed, progress=False)
        return [*method.drawn, *method.proj.weight.flatten().tolist()]
    before = np.random.get_state()[1].tolist(), random.getstate()
    first = drawn(0)
    assert (np.random.get_state()[1].tolist(), random.getstate()) == before and len(first) == 16
    np.random.rand(), random.random(), torch.rand(())
    assert drawn(0) == first and not set(drawn(1)) & set(first)


# -- names, truth values and labels that cannot be meant ---------------------------------------------------------------


@pytest.mark.parametrize("name", ["", "direct transfer", "3", 3, "pretrain", "a,b", None])
def test_a_name_is_a_word(names, name):
    with pytest.raises(ConfigError, match="cannot name a method"): register(name)(type("Mine", (GlobalDBSCAN,), {}))


def test_of_two_classes_of_one_name_the_one_from_outside_is_to_be_renamed(names):
    METHODS.pop("votes", None)
    outside = register("votes")(type("Mine", (GlobalDBSCAN,), {"__module__": "elsewhere"}))
    inside = type("Votes", (GlobalDBSCAN,), {"__module__": "upl_reid.methods.some"})
    with pytest.raises(ConfigError, match=r"register elsewhere\.Mine under another name"): register("votes")(inside)
    METHODS["votes"] = inside
    with pytest.raises(ConfigError, match=r"register elsewhere\.Mine under another name"): register("votes")(outside)


@pytest.mark.parametrize("value", ["no", "false", 0, 1, None])
def test_a_truth_value_is_true_or_false(value):
    with pytest.raises(ConfigError, match="'center' of method 'dbscan' is True or False"):
        RunConfig("tiny", "plaza", "campus", "dbscan", {"center": value})


LABELS = dict(hard=torch.tensor([0, 1, -1]), soft=torch.tensor([[.9, .1], [.2, .8], [0., 0.]]),
              weight=torch.tensor([1., .5, 0.]), centroids=torch.eye(2))


def test_an_image_that_is_not_used_needs_no_probabilities(): PseudoLabels(**LABELS)


@pytest.mark.parametrize("part, value, message", [
    ("weight", [5., .5, 0.], "to 5: .* a weight is a number from 0 to 1"),
    ("weight", [np.nan, .5, 0.], "a weight is a number from 0 to 1"),
    ("weight", [np.inf, .5, 0.], "a weight is a number from 0 to 1"),
    ("soft", [[1., 1.], [.2, .8], [0., 0.]], "1 of 2 rows .* adds up to 2"),
    ("soft", [[1.5, -.5], [.2, .8], [0., 0.]], "1 of 2 rows"),
    ("soft", [[np.nan, .5], [np.nan, .8], [0., 0.]], "2 of 2 rows"),
    ("centroids", [[np.nan, 0.], [0., 1.]], "centroids has a NaN")])
def test_labels_that_cannot_be_meant_are_refused(part, value, message):
    with pytest.raises(DataError, match=message): PseudoLabels(**LABELS | {part: torch.tensor(value)})
