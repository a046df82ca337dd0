"""What may be trained privately: modules proven to treat each user's row apart, layer by layer, use by use.

Two things must hold for the clipped sum to be bounded. Row i of the output must depend on row i of the input
and on nothing else of the batch; and the norm of each user's gradient must be the true one. Neither can be
tested into a module, so both are argued, beside each entry of ``LAYERS`` and ``FUNCTIONS``. What a module
does with them is read off its graph by ``torch.fx``, and then the graph is what runs, never the module's own
``forward``: what was checked is what is trained.

Why a graph of such nodes is bounded. Every value in it has shape ``(batch, width)``: the rows have, and each
node keeps it. So by induction row i of each value is a function of row i of the input and of the parameters.
A layer with parameters is used once, so row i of what flows back into it is the derivative of user i's loss
alone, which is all that the formulas for its norms assume.
"""

from __future__ import annotations

import operator
import threading
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from recsys_budget._extras import extra
from recsys_budget.errors import SpecificationError

with extra("train"):
    import torch
    from torch import Tensor, fx, nn
    from torch.nn import functional as F
    from torch.nn.modules import module as torch_module


class UnitRows(nn.Module):
    """Divide each row by its Euclidean norm; an empty row stays empty."""

    def forward(self, rows: Tensor) -> Tensor:
        """Rows of norm 1 or 0, in the shape given."""
        return nn.functional.normalize(rows, dim=1)


_ELEMENTWISE = "each entry of the result depends on one entry of the row; no parameters"
_ALONG_THE_ROW = "the dimension is checked to be the row's own; no parameters"
# Every type, exactly (a subclass may do anything), and why it is sound where a sample is one row.
LAYERS: Mapping[type[nn.Module], str] = {
    nn.Linear: (
        "y_i = W x_i + b. The gradient of user i is g_i x_i^T for W and g_i for b, where g_i is what flows "
        "back into y_i. The norms are |g_i| |x_i| and |g_i|"
    ),
    UnitRows: "each row is divided by a number that is computed from that row; no parameters",
    nn.LayerNorm: (
        "y_i = w * n_i + b, where n_i is row i centred and scaled by its own mean and variance. The gradient "
        "of user i is g_i * n_i for w and g_i for b, entry by entry"
    ),
    nn.Softmax: _ALONG_THE_ROW,
    nn.LogSoftmax: _ALONG_THE_ROW,
    nn.Identity: _ELEMENTWISE,
    nn.Tanh: _ELEMENTWISE,
    nn.Sigmoid: _ELEMENTWISE,
    nn.ReLU: _ELEMENTWISE,
    nn.LeakyReLU: _ELEMENTWISE,
    nn.ELU: _ELEMENTWISE,
    nn.GELU: _ELEMENTWISE,
    nn.SiLU: _ELEMENTWISE,
    nn.Softplus: _ELEMENTWISE,
}
# Of two values of shape (batch, width), or of one and a number. A width of 1 is spread along the row; nothing
# can be spread over the batch, since no value has a first dimension other than the batch.
FUNCTIONS: Mapping[Callable[..., Any] | str, str] = {
    **dict.fromkeys((operator.add, operator.sub, operator.mul, operator.truediv, operator.neg), _ELEMENTWISE),
    **dict.fromkeys((torch.add, torch.sub, torch.mul, torch.div, torch.neg), _ELEMENTWISE),
    **dict.fromkeys(("add", "sub", "mul", "div", "neg"), _ELEMENTWISE),
    **dict.fromkeys((torch.tanh, torch.sigmoid, torch.relu, "tanh", "sigmoid", "relu"), _ELEMENTWISE),
    **dict.fromkeys((F.relu, F.leaky_relu, F.elu, F.gelu, F.silu, F.softplus), _ELEMENTWISE),
    **dict.fromkeys((torch.softmax, F.softmax, "softmax", F.normalize, torch.cat), _ALONG_THE_ROW),
    **dict.fromkeys((torch.log_softmax, F.log_softmax, "log_softmax"), _ALONG_THE_ROW),
}
_LINEAR_INSTEAD = "A Linear layer without bias is the same map of a row of zeros and ones"
_ROWS_ONLY = "only rows of shape (batch, width) are understood, one a user"
# Refused by name, so that the error can say what goes wrong.
REFUSED: Mapping[type[nn.Module], str] = {
    nn.EmbeddingBag: (
        "Opacus's norms for it are wrong, 20 times too small where an item is repeated 20 times. "
        f"{_LINEAR_INSTEAD}"
    ),
    nn.Embedding: (
        "max_norm changes the rows that were looked up, outside the mechanism; padding_idx makes norms "
        f"wrong; and positions of shape (batch, length) are no row a user. {_LINEAR_INSTEAD}"
    ),
    nn.modules.dropout._DropoutNd: (
        "its masks come one after another from torch's generator, so for whoever knows the seed, removing a "
        "user changes the mask of every later one, and the sum moves by far more than the bound"
    ),
    nn.modules.batchnorm._NormBase: "it mixes the users of a batch, or keeps averages of them in buffers",
    nn.MultiheadAttention: _ROWS_ONLY,
    nn.RNNBase: _ROWS_ONLY,
    nn.Flatten: _ROWS_ONLY,
    nn.Unflatten: _ROWS_ONLY,
}
# Of larger activations the squares could be huge where those of gradients vanish, and the product of the two
# would be a wrong norm. No table of interactions holds any such value.
LARGEST = 1e6


class Use(NamedTuple):
    """A layer with parameters, what went in and what came out, both ``(batch, width)``."""

    layer: nn.Module
    input: Tensor
    output: Tensor


class RowGraph:
    """A module as the graph that it was verified to be.

    Args:
        module: A ``torch.nn.Sequential``, or a module of its own whose ``forward`` uses allowed layers and
            functions alone: nested, with sums of branches, and so on. It is traced in training mode. Layers
            and parameters stay its own.

    Raises:
        SpecificationError: A layer, or a use of it, that is not known to be sound; the message says why.
    """

    _nodes: list[tuple[fx.Node, Any]]

    def __init__(self, module: nn.Module) -> None:
        _check_parts(module)
        graph = _traced(module)
        _check_uses(module, graph)
        self._nodes = [
            (node, module.get_submodule(str(node.target)) if node.op == "call_module" else node.target)
            for node in graph.nodes
        ]

    def __call__(self, rows: Tensor) -> tuple[Tensor, Tensor, list[Use]]:
        """Run the graph; not while another thread traces a module.

        Args:
            rows: Shape ``(batch, n)``.

        Returns:
            Outputs ``(batch, m)``; which rows are usable ``(batch,)``: those of which no value on the way is
            beyond what norms can be computed of; and the uses of layers with parameters.
        """
        with _ALONE:
            return self._run(rows)

    def _run(self, rows: Tensor) -> tuple[Tensor, Tensor, list[Use]]:
        values: dict[fx.Node, Any] = {}
        uses: list[Use] = []
        usable = torch.ones(len(rows), dtype=torch.bool, device=rows.device)
        for node, target in self._nodes:
            if node.op == "output":
                return values[node.all_input_nodes[0]], usable, uses
            if node.op == "placeholder":
                value = rows
            else:
                arguments: Any = fx.node.map_arg(node.args, values.__getitem__)
                for source in node.all_input_nodes:
                    # Written so that NaN fails.
                    usable &= (values[source].detach().abs() <= LARGEST).all(dim=1)
                if node.op == "call_method":
                    value = getattr(arguments[0], target)(*arguments[1:], **node.kwargs)
                else:
                    value = target(*arguments, **node.kwargs)
                if node.op == "call_module" and target._parameters.get("weight") is not None:
                    uses.append(Use(target, arguments[0], value))
            values[node] = value
        raise AssertionError("a graph ends with its output")


# torch.fx traces by changing what calling a module means, for every thread of the process.
_ALONE = threading.RLock()


class _Tracer(fx.Tracer):
    """Looks into sequences and modules of the user's own; every other module of torch is a layer."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return type(m) is UnitRows or super().is_leaf_module(m, module_qualified_name)


def _traced(module: nn.Module) -> fx.Graph:
    if type(module) in LAYERS or type(module) in REFUSED:
        raise SpecificationError(f"a bare {type(module).__name__} is a layer; put it in torch.nn.Sequential")
    modes = {part: part.training for part in module.modules()}
    module.train()
    try:
        with _ALONE:
            return _Tracer().trace(module)
    except Exception as error:  # whatever a user's forward raises
        raise SpecificationError(
            f"the forward of a {type(module).__name__} cannot be read as a graph ({error}). Let it take one "
            "argument, branch on no value or shape, and use allowed layers and functions only"
        ) from error
    finally:
        for part, mode in modes.items():
            part.training = mode


def _check_parts(module: nn.Module) -> None:
    """Everything about layers and parameters that does not depend on how they are used."""
    if not isinstance(module, nn.Module):
        raise SpecificationError(f"a {type(module).__name__} is no torch.nn.Module")
    if any(
        value for name, value in vars(torch_module).items() if isinstance(value, dict) and "_hooks" in name
    ):
        raise SpecificationError("torch has hooks on all modules; remove them before training privately")
    for part in module.modules():
        kind = type(part).__name__
        if nn.utils.parametrize.is_parametrized(part):
            raise SpecificationError(f"a {kind} is parametrized: its norms would be of other numbers")
        if any(value for name, value in vars(part).items() if "hooks" in name):
            raise SpecificationError(f"a {kind} has hooks, which may change what flows through; remove them")
        if type(part) in LAYERS:
            _check_layer(part)
        elif part._parameters or type(part) in REFUSED:
            raise SpecificationError(_about(part))
        if part._buffers:
            raise SpecificationError(f"a {kind} has buffers, which can keep what no mechanism released")
        if {"forward", "_call_impl", "_compiled_call_impl"} & vars(part).keys():
            raise SpecificationError(f"the forward of a {kind} was replaced or compiled; give it as it was")
    parameters = [p for part in module.modules() for p in part._parameters.values() if p is not None]
    if not parameters:
        raise SpecificationError(f"a {type(module).__name__} has no parameters to train")
    if any(type(p) is not nn.Parameter or p._backward_hooks for p in parameters):
        raise SpecificationError("parameters must be plain torch.nn.Parameters without hooks")
    if not all(p.requires_grad for p in parameters):
        raise SpecificationError(
            "some parameters require no gradient, and which ones do may change while training runs; train all"
        )
    if any(p.dtype not in (torch.float32, torch.float64) for p in parameters):
        raise SpecificationError("parameters must be float32 or float64: gradients underflow in less")
    if len({p.dtype for p in parameters}) > 1:
        raise SpecificationError("parameters are of several dtypes; use one")


def _check_layer(layer: nn.Module) -> None:
    """An allowed type, as it was set up."""
    kind = type(layer).__name__
    own = {name for name, p in layer._parameters.items() if p is not None}
    if isinstance(layer, nn.LayerNorm) and len(layer.normalized_shape) > 1:
        raise SpecificationError(f"a LayerNorm over {layer.normalized_shape} mixes users; give one width")
    # Those of LayerNorm can be left out.
    expected = {"weight"} | own & {"bias"} if own or isinstance(layer, nn.Linear) else set()
    # A weight that is a plain tensor may have been computed from another layer's.
    if own != expected or {"weight", "bias"} & vars(layer).keys() or layer._modules:
        raise SpecificationError(f"a {kind} holds something else than its own parameters; build it afresh")
    if getattr(layer, "inplace", False):
        raise SpecificationError(f"a {kind} in place overwrites what norms need; use inplace=False")
    if isinstance(layer, nn.Softmax | nn.LogSoftmax) and layer.dim not in (1, -1):
        raise SpecificationError(f"a {kind} over dimension {layer.dim} mixes users; use dim=1")


def _check_uses(module: nn.Module, graph: fx.Graph) -> None:
    """Everything that the graph says."""
    if sum(node.op == "placeholder" for node in graph.nodes) != 1:
        raise SpecificationError("the module must take one argument: a row a user")
    output = next(node for node in graph.nodes if node.op == "output")
    if not isinstance(output.args[0], fx.Node):
        raise SpecificationError("the module must return one tensor: a row a user")
    used: list[nn.Module] = []
    for node in graph.nodes:
        if node.op == "get_attr":
            raise SpecificationError(
                f"{node.target} is used outside any layer (tied weights, a penalty): what flows back to it "
                "from there is in no norm"
            )
        if node.op == "call_module":
            layer = module.get_submodule(str(node.target))
            if type(layer) not in LAYERS:
                raise SpecificationError(_about(layer))
            if node.kwargs or [type(a) for a in node.args] != [fx.Node]:
                raise SpecificationError(f"{node.target} must be called with one tensor")
            used.append(layer)
        elif node.op in ("call_function", "call_method"):
            _check_function(node)
    reached: set[fx.Node] = set()
    frontier = [output]
    while frontier:
        node = frontier.pop()
        reached.add(node)
        frontier += set(node.all_input_nodes) - reached
    if len(reached) < len(graph.nodes):
        raise SpecificationError("the module computes something that its output does not need; leave it out")
    parameters = [p for layer in used for p in layer.parameters()]
    if len({p.untyped_storage().data_ptr() for p in parameters}) < len(parameters):
        raise SpecificationError(
            "a layer or its weight is used twice (tied weights): norms would be of one use at a time, not of "
            "their sum; give each use its own"
        )
    if len(parameters) < len(list(module.parameters())):
        raise SpecificationError("the module has a layer that it never uses; leave it out")


def _check_function(node: fx.Node) -> None:
    target: Any = node.target
    name = getattr(target, "__name__", str(target))
    if target not in FUNCTIONS:
        known = ", ".join(sorted({f if isinstance(f, str) else f.__name__ for f in FUNCTIONS}))
        raise SpecificationError(
            f"{name} is not known to treat each user's row apart (products of two tensors, sums over the "
            f"batch and changes of shape do not); use {known}"
        )
    arguments, keywords = list(node.args), dict(node.kwargs)
    if any(keywords.pop(keyword, None) for keyword in ("inplace", "out", "dtype")):
        raise SpecificationError(f"{name} must neither write in place nor change the dtype")
    if FUNCTIONS[target] is _ALONG_THE_ROW:
        dim = keywords.pop("dim", arguments.pop() if len(arguments) == 2 else None)
        if dim not in (1, -1):
            raise SpecificationError(f"{name} over dimension {dim} mixes users; say dim=1")
        if target is torch.cat and len(arguments) == 1 and isinstance(arguments[0], list | tuple):
            arguments = list(arguments[0])
    if not all(isinstance(a, fx.Node | int | float) for a in arguments) or not all(
        a is None or isinstance(a, int | float | str) for a in keywords.values()
    ):
        raise SpecificationError(f"{name} must be called with rows and numbers only")


def _about(layer: nn.Module) -> str:
    kind, names = type(layer).__name__, ", ".join(allowed.__name__ for allowed in LAYERS)
    for refused, why in REFUSED.items():
        if isinstance(layer, refused):
            return f"a {kind} cannot be trained privately: {why}"
    if not type(layer).__module__.startswith("torch.nn"):
        return f"a {kind} has parameters or buffers outside any layer whose norms are known; use {names}"
    return f"the per-user gradients of a {kind} are not known to be right; use {names}"
