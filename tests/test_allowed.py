"""Modules of a user's own: what is admitted is right to the last layer; the rest is refused with a reason."""

from __future__ import annotations

import operator

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, parametrize

from recsys_budget.errors import SensitivityError, SpecificationError
from recsys_budget.training import UnitRows, _opacus, adversarial_rows, allowed, graph_sum
from recsys_budget.training import check_sensitivity as check
from recsys_budget.training import neighbour_sensitivity as sensitivity
from recsys_budget.training.allowed import FUNCTIONS, LAYERS, RowGraph

N, CLIP = 14, 0.3


@pytest.fixture(autouse=True)
def same_start():
    torch.manual_seed(0)


def cross_entropy(outputs, row):
    return -(row * torch.log_softmax(outputs, 0)).sum()


def squared(outputs, row):
    return ((outputs - row) ** 2).sum()


class Residual(nn.Module):
    """What recommenders are made of: blocks in blocks, branches, gates, norms."""

    def __init__(self):
        super().__init__()
        self.encode = nn.Linear(N, 8, bias=False)
        self.blocks = nn.ModuleList([Block(8), Block(8)])
        self.gate = nn.Sequential(nn.Linear(8, 8), nn.Sigmoid())
        self.decode = nn.Linear(16, N)
        self.act = nn.SiLU()

    def forward(self, rows):
        start = hidden = self.act(self.encode(F.normalize(rows, dim=1)))
        for block in self.blocks:
            hidden = block(hidden)
        hidden = self.act(hidden * self.gate(hidden)) / 2
        return self.decode(torch.cat([hidden, -start], dim=1))


class Block(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.norm, self.one, self.two = nn.LayerNorm(width), nn.Linear(width, 5), nn.Linear(5, width)

    def forward(self, x):
        return x + self.two(F.gelu(self.one(self.norm(x))))


def sandwich(*layers, width=6):
    return nn.Sequential(nn.Linear(N, width), *layers, nn.Linear(width, N))


# Every layer on the list, in a module where what comes before it and after it is trained too.
PARTS = {
    nn.Linear: lambda: sandwich(nn.Linear(6, 6, bias=False)),
    UnitRows: lambda: sandwich(UnitRows()),
    nn.LayerNorm: lambda: sandwich(nn.LayerNorm(6)),
    nn.Softmax: lambda: sandwich(nn.Softmax(dim=1)),
    nn.LogSoftmax: lambda: sandwich(nn.LogSoftmax(dim=-1)),
} | {
    kind: lambda kind=kind: sandwich(kind())
    for kind in (
        nn.Identity,
        nn.Tanh,
        nn.Sigmoid,
        nn.ReLU,
        nn.LeakyReLU,
        nn.ELU,
        nn.GELU,
        nn.SiLU,
        nn.Softplus,
    )
}


class Applied(nn.Module):
    """A function between two layers."""

    def __init__(self, function):
        super().__init__()
        self.first, self.last, self.function = nn.Linear(N, 6), nn.Linear(6, N), function

    def forward(self, rows):
        return self.last(self.function(self.first(rows)))


def use(function):
    """One lawful use of a function on the list."""
    if function is torch.cat:
        return lambda x: torch.cat([x], 1)
    if isinstance(function, str):
        if "softmax" in function:
            return lambda x: getattr(x, function)(dim=1)
        return lambda x: getattr(x, function)(
            *([2 * x] if function in ("add", "sub", "mul") else [3.0][: function == "div"])
        )
    if FUNCTIONS[function] is allowed._ALONG_THE_ROW:
        return lambda x: function(x, dim=1)
    if function in (operator.add, operator.sub, operator.mul, torch.add, torch.sub, torch.mul):
        return lambda x: function(x, 2 * x)
    if function in (operator.truediv, torch.div):
        return lambda x: function(x, 3.0)
    return function


WHOLE = {
    "linear": lambda: nn.Sequential(nn.Linear(N, 4, bias=False), nn.Linear(4, N)),
    "nested": lambda: nn.Sequential(
        nn.Sequential(UnitRows(), nn.Linear(N, 4)), nn.Sequential(nn.Linear(4, N))
    ),
    "norms without parameters": lambda: sandwich(nn.LayerNorm(6, elementwise_affine=False)),
    "norms without bias": lambda: sandwich(nn.LayerNorm(6, bias=False)),
    "an activation used twice": lambda: Applied(lambda x: torch.relu(torch.relu(x))),
    "residual": Residual,
}
ADMITTED = (
    WHOLE
    | {kind.__name__: make for kind, make in PARTS.items()}
    | {
        f"{getattr(f, '__module__', None) or 'method'}.{getattr(f, '__name__', f)}": lambda f=f: Applied(
            use(f)
        )
        for f in FUNCTIONS
    }
)
EVERY = pytest.mark.parametrize("make", ADMITTED.values(), ids=ADMITTED)


def fixed(make):
    torch.manual_seed(0)
    module = make()
    with torch.no_grad():
        for p in module.parameters():
            p.mul_(3)
    return module


def some_rows(n=12):
    return (torch.rand(n, N, generator=torch.Generator().manual_seed(3)) < 0.3).float()


def clipped_sum(module, loss, rows, clip):
    graph_sum.GraphSum(module, clip)(rows, loss)
    return torch.cat([p.grad.flatten() for p in module.parameters()])


def brute_force(module, loss, rows, clip):
    total = 0
    for row in rows:
        module.zero_grad()
        loss(module(row[None])[0], row).backward()
        gradient = torch.cat([p.grad.flatten() for p in module.parameters()])
        total = total + gradient * min(1.0, clip / max(float(gradient.norm()), 1e-30))
    return total


def test_the_list_is_tested_whole():
    assert PARTS.keys() == LAYERS.keys()
    assert all(len(why) > 30 for why in (*LAYERS.values(), *FUNCTIONS.values()))


@EVERY
@pytest.mark.parametrize("clip", [0.05, 1e3])
def test_sums_equal_one_backward_pass_a_user(make, clip):
    for loss in (cross_entropy, squared):
        ours = clipped_sum(fixed(make), loss, some_rows(), clip)
        reference = brute_force(fixed(make), loss, some_rows(), clip)
        assert float((ours - reference).norm()) <= 1e-4 * float(reference.norm())


@EVERY
def test_no_made_up_user_moves_a_sum_by_more_than_the_bound(make):
    assert sensitivity(fixed(make), squared, adversarial_rows(N), max_grad_norm=CLIP) <= 1


@pytest.mark.parametrize("make", WHOLE.values(), ids=WHOLE)
def test_the_bound_is_reached_to_the_margin(make):
    """So the test has power; and without the margin of a thousandth it would find more."""
    for loss in (cross_entropy, squared):
        assert 0.998 < check(fixed(make), loss, N, max_grad_norm=CLIP) <= 0.9991


def cancelling():
    """What flows back into the first layer is nothing but rounding, and large inputs make it count."""
    first, last = nn.Linear(N, 4, bias=False), nn.Linear(4, 8, bias=False)
    with torch.no_grad():
        first.weight.mul_(1e-7)
        last.weight.copy_(torch.randn(8, 4) * 1e3)
        last.weight[7] = -last.weight[:7].sum(0)
    return nn.Sequential(first, last)


def nearly_constant():
    return nn.Sequential(nn.LayerNorm(N), nn.Linear(N, N))


@pytest.mark.parametrize("make", [cancelling, nearly_constant])
def test_rounding_is_no_way_round_the_bound(make):
    """Here ghost clipping's second backward pass moved 1.8 times the bound; Opacus's LayerNorm 7 times."""

    def total(outputs, row):
        return (outputs * 1.2345).sum()

    torch.manual_seed(1)
    module = make()
    for seed in range(20):
        row = 9e5 * torch.rand(1, N, generator=torch.Generator().manual_seed(seed))
        row = torch.cat([row, 9e5 + torch.rand(1, N)])
        for clip in (0.3, 0.0123, 1e-3):
            assert sensitivity(module, total, row, max_grad_norm=clip) <= 1


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e38])
def test_a_user_whose_loss_is_steep_without_bound_is_left_out_and_nobody_else(value):
    """Activations are ordinary here: only the gradient gives it away."""

    def steep(outputs, row):
        return squared(outputs, row) * (1 + value * (row[0] > 0)) * (1 + value * (row[0] > 0))

    rows = some_rows()
    assert 0 < int(rows[:, 0].sum()) < len(rows)
    with_them, without = (
        clipped_sum(fixed(Residual), steep, of, CLIP) for of in (rows, rows[rows[:, 0] == 0])
    )
    torch.testing.assert_close(with_them, without, rtol=1e-5, atol=1e-6)


def test_a_double_precision_module_is_trained_in_double_precision():
    ours = clipped_sum(fixed(Residual).double(), squared, some_rows(), 0.1)
    reference = brute_force(fixed(Residual).double(), squared, some_rows().double(), 0.1)
    assert ours.dtype == torch.float64
    assert float((ours - reference).norm()) <= 1e-9 * float(reference.norm())


# --- what is refused, and why ---


class Own(nn.Module):
    """A module whose forward is given."""

    def __init__(self, forward, **parts):
        super().__init__()
        self.one, self.two = nn.Linear(N, N), nn.Linear(N, N)
        for name, part in parts.items():
            setattr(self, name, part)
        self._run = [forward]

    def forward(self, rows):
        return self._run[0](self, rows)


class Looped(nn.Linear):
    def forward(self, rows):
        return super().forward(rows).cumsum(0)


class Weighted(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer, self.scale = nn.Linear(N, N), nn.Parameter(torch.ones(N))

    def forward(self, rows):
        return self.layer(rows) * self.scale


class TwoArguments(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Linear(N, N), nn.Linear(N, N)

    def forward(self, rows, scale=2.0):
        return self.two(self.one(rows)) * scale


def shared():
    module = nn.Sequential(nn.Linear(N, N), nn.Linear(N, N))
    module[1].weight = module[0].weight
    return module


def shared_memory():
    module = nn.Sequential(nn.Linear(N, N), nn.Linear(N, N))
    module[1].weight = nn.Parameter(module[0].weight.data)
    return module


def derived():
    """The second weight is computed from the first, once: gradients flow back into it from there."""
    module = nn.Sequential(nn.Linear(N, N), nn.Linear(N, N))
    weight = module[0].weight * 2
    del module[1].weight
    module[1].weight = weight
    return module


def changed(change):
    module = nn.Sequential(nn.Linear(N, N), nn.ReLU(), nn.Linear(N, N))
    change(module)
    return module


def twice():
    layer = nn.Linear(N, N)
    return nn.Sequential(layer, nn.ReLU(), layer)


def unused(self, rows):
    return self.one(rows)


REFUSED = {
    "embedding bag": (lambda: nn.Sequential(nn.EmbeddingBag(N, 3)), "20 times"),
    "embedding": (lambda: nn.Sequential(nn.Embedding(N, 3)), "max_norm"),
    "dropout": (lambda: sandwich(nn.Dropout()), "seed"),
    "batch norm": (lambda: sandwich(nn.BatchNorm1d(6)), "mixes"),
    "batch norm without anything": (
        lambda: sandwich(nn.BatchNorm1d(6, affine=False, track_running_stats=False)),
        "mixes",
    ),
    "recurrent": (lambda: nn.Sequential(nn.GRU(N, 3)), "rows"),
    "attention": (lambda: nn.Sequential(nn.MultiheadAttention(N, 1)), "rows"),
    "flattened batch and length": (
        lambda: nn.Sequential(nn.Unflatten(1, (N, 1)), nn.Linear(1, 1), nn.Flatten()),
        "rows",
    ),
    "convolution": (lambda: nn.Sequential(nn.Conv1d(1, 1, 3)), "not known"),
    "prelu": (lambda: sandwich(nn.PReLU()), "not known"),
    "norm over the batch": (lambda: sandwich(nn.LayerNorm([12, 6])), "mixes"),
    "softmax over the batch": (lambda: sandwich(nn.Softmax(dim=0)), "mixes"),
    "softmax over who knows": (lambda: sandwich(nn.Softmax()), "mixes"),
    "in place": (lambda: sandwich(nn.ReLU(inplace=True)), "in place"),
    "subclass of a layer": (lambda: nn.Sequential(Looped(N, N)), "outside any layer"),
    "parameter of one's own": (Weighted, "outside any layer"),
    "bare layer": (lambda: nn.Linear(N, N), "Sequential"),
    "no module": (lambda: torch.relu, "no torch.nn.Module"),
    "nothing to train": (lambda: nn.Sequential(nn.ReLU()), "no parameters"),
    "layer used twice": (twice, "twice"),
    "shared weight": (shared, "twice"),
    "shared memory": (shared_memory, "twice"),
    "derived weight": (derived, "else than its own"),
    "weight used outside its layer": (
        lambda: Own(lambda self, rows: self.two(self.one(rows)) @ self.one.weight),
        "outside any layer",
    ),
    "functional use of a weight": (
        lambda: Own(lambda self, rows: F.linear(self.two(self.one(rows)), self.one.weight)),
        "outside any layer",
    ),
    "penalty": (
        lambda: Own(lambda self, rows: self.two(self.one(rows)) + (self.one.weight**2).sum()),
        "outside any layer",
    ),
    "constant tensor": (
        lambda: Own(lambda self, rows: self.two(self.one(rows)) + torch.ones(3, N)),
        "outside any layer",
    ),
    "in-batch negatives": (
        lambda: Own(lambda self, rows: self.one(rows) @ self.two(rows).T),
        "not known to treat",
    ),
    "mean over the batch": (
        lambda: Own(lambda self, rows: self.two(self.one(rows)) - rows.mean(0)),
        "not known to treat",
    ),
    "cumulative sum": (
        lambda: Own(lambda self, rows: self.two(self.one(rows)).cumsum(0)),
        "not known to treat",
    ),
    "roll": (lambda: Own(lambda self, rows: self.two(self.one(rows)).roll(1, 0)), "not known to treat"),
    "reshape": (lambda: Own(lambda self, rows: self.two(self.one(rows)).reshape(-1)), "not known to treat"),
    "a row picked out": (
        lambda: Own(lambda self, rows: self.two(self.one(rows)) + rows[0]),
        "not known to treat",
    ),
    "detached": (lambda: Own(lambda self, rows: self.two(self.one(rows).detach())), "not known to treat"),
    "size of the batch": (
        lambda: Own(lambda self, rows: self.two(self.one(rows)) / rows.shape[0]),
        "not known to treat",
    ),
    "functional softmax over the batch": (
        lambda: Own(lambda self, rows: F.softmax(self.two(self.one(rows)), dim=0)),
        "mixes",
    ),
    "normalised over the batch": (
        lambda: Own(lambda self, rows: F.normalize(self.two(self.one(rows)), dim=0)),
        "mixes",
    ),
    "concatenated over the batch": (
        lambda: Own(lambda self, rows: torch.cat([self.one(rows), self.two(rows)])),
        "mixes",
    ),
    "functional dropout": (lambda: Own(lambda self, rows: F.dropout(self.two(self.one(rows)))), "not known"),
    "functional in place": (
        lambda: Own(lambda self, rows: self.two(F.relu(self.one(rows), inplace=True))),
        "in place",
    ),
    "branch on values": (
        lambda: Own(
            lambda self, rows: self.two(self.one(rows)) if rows.sum() > 3 else self.one(self.two(rows))
        ),
        "cannot be read",
    ),
    "two outputs": (lambda: Own(lambda self, rows: (self.one(rows), self.two(rows))), "one tensor"),
    "something else than a number": (
        lambda: Own(lambda self, rows: self.two(self.one(rows)) * (2.0, 3.0)),
        "rows and numbers only",
    ),
    "two arguments": (TwoArguments, "one argument"),
    "a layer called by keyword": (
        lambda: Own(lambda self, rows: self.two(self.one(input=rows))),
        "with one tensor",
    ),
    "unused layer": (lambda: Own(unused), "never uses"),
    "dead branch": (
        lambda: Own(lambda self, rows: (self.two(rows), self.one(rows))[1]),
        "does not need",
    ),
    "layer out of sight": (
        lambda: Own(lambda self, rows: self.hidden[0](self.two(self.one(rows))), hidden=[nn.Linear(N, N)]),
        "cannot be read",
    ),
    "forward hook": (
        lambda: changed(lambda m: m[0].register_forward_hook(lambda layer, i, o: o * 100)),
        "hooks",
    ),
    "hook on the whole": (
        lambda: changed(lambda m: m.register_forward_hook(lambda layer, i, o: o * 100)),
        "hooks",
    ),
    "backward hook": (
        lambda: changed(lambda m: m[0].register_full_backward_hook(lambda layer, i, o: None)),
        "hooks",
    ),
    "hook on a parameter": (lambda: changed(lambda m: m[0].weight.register_hook(lambda g: g * 9)), "hooks"),
    "buffer": (lambda: changed(lambda m: m[0].register_buffer("seen", torch.zeros(3))), "buffers"),
    "buffer of the whole": (
        lambda: changed(lambda m: m.register_buffer("seen", torch.zeros(3))),
        "buffers",
    ),
    "forward replaced": (
        lambda: changed(lambda m: setattr(m[0], "forward", lambda x: x.cumsum(0))),
        "replaced",
    ),
    "frozen": (lambda: changed(lambda m: m[0].weight.requires_grad_(False)), "train all"),
    "half precision": (lambda: changed(lambda m: m.half()), "float32"),
    "two precisions": (lambda: changed(lambda m: m[0].double()), "several dtypes"),
    "parametrized": (
        lambda: changed(lambda m: parametrize.register_parametrization(m[0], "weight", nn.Identity())),
        "parametrized",
    ),
    "weight norm": (lambda: changed(lambda m: parametrizations.weight_norm(m[0])), "parametrized"),
    "parameter added to a layer": (
        lambda: changed(lambda m: m[1].register_parameter("extra", nn.Parameter(torch.ones(3)))),
        "else than its own",
    ),
}


@pytest.mark.parametrize(("make", "why"), REFUSED.values(), ids=REFUSED)
def test_what_is_not_proven_is_refused_and_the_error_says_why(make, why):
    with pytest.raises(SpecificationError, match=why):
        RowGraph(make())


def test_hooks_on_all_modules_are_refused():
    handle = torch.nn.modules.module.register_module_forward_hook(lambda layer, i, o: None)
    try:
        with pytest.raises(SpecificationError, match="hooks on all modules"):
            RowGraph(fixed(Residual))
    finally:
        handle.remove()


def test_what_was_checked_is_what_runs():
    """A forward that behaves while it is read and misbehaves afterwards is not called again."""
    calls = []

    def moody(self, rows):
        calls.append(rows)
        hidden = self.two(self.one(rows))
        return hidden if len(calls) == 1 else hidden.cumsum(0)

    module = Own(moody)
    assert sensitivity(module, squared, some_rows(), max_grad_norm=CLIP) <= 1
    assert len(calls) == 1


def test_tracing_leaves_the_mode_as_it_was():
    module = Residual().eval()
    module.gate.train()
    before = [part.training for part in module.modules()]
    RowGraph(module)
    assert [part.training for part in module.modules()] == before


# --- the test has power: each mistake below is found by it ---


def found(module, loss=squared):
    with pytest.raises(SensitivityError) as caught:
        check(module, loss, N, max_grad_norm=CLIP)
    assert caught.value.sensitivity > 1
    return caught.value.sensitivity


def test_a_layer_whose_norm_is_forgotten_is_found(monkeypatch):
    norms = graph_sum._squares
    for forgotten in (4, 8):
        monkeypatch.setattr(
            graph_sum,
            "_squares",
            lambda layer, *pair, forgotten=forgotten: norms(layer, *pair) * (layer.in_features != forgotten),
        )
        assert found(nn.Sequential(nn.Linear(N, 8), nn.Linear(8, 4), nn.Linear(4, N))) > 1.1


def test_a_forgotten_bias_is_found(monkeypatch):
    length = graph_sum._length
    monkeypatch.setattr(
        graph_sum, "_squares", lambda layer, values, flow: (length(flow) * length(values)) ** 2
    )
    found(fixed(WHOLE["linear"]))


def test_a_dropped_margin_is_found(monkeypatch):
    monkeypatch.setattr(_opacus, "_MARGIN", 1.0)
    assert sensitivity(fixed(Residual), squared, adversarial_rows(N), max_grad_norm=CLIP) > 0.9999


def test_sums_of_unscaled_gradients_are_found(monkeypatch):
    monkeypatch.setattr(graph_sum, "_squares", lambda layer, values, flow: 0 * graph_sum._length(flow))
    assert found(fixed(Residual)) > 10


def test_a_loss_that_sees_the_batch_is_found(monkeypatch):
    """In-batch negatives: what a user's loss would be, were it called with the whole batch."""
    monkeypatch.setattr(torch.func, "vmap", lambda loss: loss)

    def in_batch(outputs, rows):
        return ((outputs - outputs.mean(0) - rows) ** 2).sum(1)

    def normal(outputs, rows):
        return ((outputs - rows) ** 2).sum(1)

    rows = some_rows()
    assert sensitivity(fixed(WHOLE["linear"]), normal, rows, max_grad_norm=CLIP) <= 1
    assert sensitivity(fixed(WHOLE["linear"]), in_batch, rows, max_grad_norm=CLIP) > 1.01


def test_a_loss_is_given_one_user_so_it_cannot_see_the_batch():
    def in_batch(outputs, row):
        return ((outputs - outputs.mean(0) - row) ** 2).sum()  # over the user's own outputs

    assert check(fixed(WHOLE["linear"]), in_batch, N, max_grad_norm=CLIP) <= 1


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(N, N)

    def forward(self, rows):
        return self.layer(torch.relu(self.layer(rows)))


def test_tied_weights_would_be_found_were_they_admitted(monkeypatch):
    monkeypatch.setattr(allowed, "_check_uses", lambda module, graph: None)
    # Each use is added up in the norms, and the sum keeps the last: give it both, as a backward pass would.
    sums = graph_sum._sums

    def both(layer, values, flow):
        for p, total in sums(layer, values, flow):
            yield p, total + p.grad

    monkeypatch.setattr(graph_sum, "_sums", both)
    assert found(Tied()) > 1.01


def test_embedding_bags_would_be_found_were_they_admitted(monkeypatch):
    """An item repeated 20 times has 20 times the gradient and, by Opacus's formula, one time the norm."""

    class Bag(nn.Module):
        def __init__(self):
            super().__init__()
            self.bag, self.decode, self.bias = nn.Embedding(N, 4), nn.Linear(4, N), None

        def forward(self, rows):
            return self.decode(self.bag(rows))

    def look_up(layer, rows):
        return torch.nan_to_num(rows).clamp(-20, 20) @ layer.weight

    monkeypatch.setattr(nn.Embedding, "forward", look_up)
    monkeypatch.setattr(nn.Embedding, "bias", None, raising=False)
    monkeypatch.setattr(allowed, "LAYERS", LAYERS | {nn.Embedding: "mistaken"})
    monkeypatch.setattr(allowed, "_check_layer", lambda layer: None)
    squares = graph_sum._squares

    def once(layer, values, flow):
        if isinstance(layer, nn.Embedding):
            return graph_sum._length(flow) ** 2
        return squares(layer, values, flow)

    monkeypatch.setattr(graph_sum, "_squares", once)

    def right(layer, values, flow):
        if isinstance(layer, nn.Embedding):
            yield layer.weight, torch.nan_to_num(values).clamp(-20, 20).t() @ flow
        else:
            yield layer.weight, flow.t() @ values
            yield layer.bias, flow.sum(0)

    monkeypatch.setattr(graph_sum, "_sums", right)
    assert found(Bag()) > 1.2


def test_masks_from_a_known_seed_would_be_found_were_dropout_admitted(monkeypatch):
    class Seeded(nn.Module):
        def forward(self, rows):
            torch.manual_seed(1)
            return F.dropout(rows)

    monkeypatch.setattr(allowed, "LAYERS", LAYERS | {Seeded: "mistaken"})
    monkeypatch.setattr(
        allowed._Tracer, "is_leaf_module", lambda self, m, name: not isinstance(m, nn.Sequential)
    )
    assert found(sandwich(Seeded())) > 1.2


def test_what_module_and_loss_cannot_be_computed_of_is_said_before_training():
    with pytest.raises(SpecificationError, match=r"rows of width 15.*mat1"):
        check(fixed(Residual), squared, N + 1, max_grad_norm=CLIP)
    with pytest.raises(SpecificationError, match="scalar"):
        check(fixed(Residual), lambda outputs, row: row.sum(), N, max_grad_norm=CLIP)
    with pytest.raises(SpecificationError, match="scalar"):
        check(fixed(Residual), lambda outputs, row: torch.rand(()) * outputs.sum(), N, max_grad_norm=CLIP)


def test_a_figure_that_is_no_number_does_not_pass(monkeypatch):
    monkeypatch.setattr(
        "recsys_budget.training.sensitivity.neighbour_sensitivity", lambda *a, **k: float("nan")
    )
    with pytest.raises(SensitivityError):
        check(fixed(Residual), squared, N, max_grad_norm=CLIP)


def test_the_test_changes_nothing():
    module, threads = fixed(Residual), torch.get_num_threads()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    check(module, squared, N, max_grad_norm=CLIP)
    assert all(torch.equal(before[name], value) for name, value in module.state_dict().items())
    assert all(p.grad is None and vars(p) == {} for p in module.parameters())
    assert torch.get_num_threads() == threads
    torch.testing.assert_close(adversarial_rows(N), adversarial_rows(N), equal_nan=True)
