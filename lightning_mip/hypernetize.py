"""Attach a hypernetwork to any module in place, detach it, and take the plain network out for one ``h``."""

from __future__ import annotations

import copy
import difflib
import inspect
import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase

from lightning_mip.batches import inputs_of, moved
from lightning_mip.binding import write_into
from lightning_mip.checks import check_finite
from lightning_mip.hypernetwork import HyperNetwork, Priors
from lightning_mip.injection import Injector, check_module, evaluated, the_injector
from lightning_mip.report import Summary, available_memory, summarize
from lightning_mip.selection import Patterns, select
from lightning_mip.shown import on_one_line
from lightning_mip.space import HSpace


def hypernetize(
    module: nn.Module,
    h: Priors,
    *,
    include: Patterns = "*",
    exclude: Patterns = (),
    hypernet: HyperNetwork | Callable[[HSpace, dict[str, torch.Size]], HyperNetwork] | None = None,
    force: bool = False,
    **arguments: Any,
) -> HyperNetwork:
    """Attach a hypernetwork to ``module``, in place.

    The module's parameters stay where they are and become ``theta0``; inside ``with at(module, h):`` it runs with
    ``theta(h) = theta0 + delta(h)``. Train both: ``[*module.parameters(), *hyper.parameters()]``. A parameter that is
    frozen stays so as ``theta0``, and gets a trained ``delta`` all the same; ``exclude`` it to keep it as it is.

    Args:
        module: the primary network.
        h: component name -> prior, or an `HSpace`.
        include: what to generate: globs on names of parameters or modules (``"encoder.*"``), module types, parameters.
        exclude: what to leave out, in the same forms.
        hypernet: something called with (space, shapes) that makes one (`HyperNetwork.paper`), or a `HyperNetwork` made
            before for the same space and parameters.
        force: attach even if training would not fit in memory.
        **arguments: arguments of `HyperNetwork`.

    Returns:
        The hypernetwork, on the module's device. It is not a child of ``module``: state_dict keys do not change.

    Raises:
        ValueError: a pattern matches nothing, ``module`` is hypernetized already, or ``hypernet`` does not fit it.
        MemoryError: weights, gradients and Adam's state would not fit in memory; the message holds the size report.

    >>> net = nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, 1))
    >>> from lightning_mip import Uniform
    >>> hyper = hypernetize(net, {"lam": Uniform(0, 1)}, include="2.*", hidden_sizes=(8,))
    >>> list(hyper.shapes)
    ['2.weight', '2.bias']
    """
    check_module(module)
    module = getattr(module, "_orig_mod", module)
    _check_free(module)
    space = h if isinstance(h, HSpace) else HSpace(h)
    names = select(module, include, exclude)
    theta0 = {name: module.get_parameter(name) for name in names}
    shapes = {name: parameter.shape for name, parameter in theta0.items()}
    # What is given as a module cannot be made anew.
    is_module = isinstance(hypernet, HyperNetwork)
    recipe = None if is_module or arguments.get("trunk") is not None else hypernet or arguments
    device = next(iter(theta0.values())).device
    if hypernet is None:
        check_known(arguments)
        if not force:
            _check_memory(_plan(space, theta0, arguments), device)
        hypernet = HyperNetwork(space, shapes, **arguments)
    else:
        hypernet = _made(hypernet, space, shapes)
        _check_fits(hypernet, space, shapes, arguments)
        if not (is_module or force):
            _check_memory(summarize(hypernet), device)
    if hypernet.is_fresh and not is_module:
        hypernet.initialize_ratio(theta0)
        _silence_padding(module, names, hypernet)
    hypernet.is_fresh = False
    hypernet.to(device=device, dtype=_dtype(theta0))
    _warn_of_batch_norm(module)
    injector = Injector(module, hypernet, names)
    injector.recipe = recipe
    if not hypernet.residual:
        injector.frozen = [name for name, parameter in theta0.items() if parameter.requires_grad]
        _require_grad(injector, False)
    for child in module.modules():
        # An activation has nothing to read; calling a hook takes PyTorch longer than the hook itself.
        if not isinstance(child, torch.jit.ScriptModule) and next(child.parameters(), None) is not None:
            # First, so that hooks which read weights (the old weight_norm and spectral_norm) find fresh ones.
            child.register_forward_pre_hook(injector, prepend=True)
    # Code compiled before this line knows nothing of the hook and would go on with theta0.
    torch.compiler.reset()
    return hypernet


def dehypernetize(module: nn.Module) -> nn.Module:
    """Detach the hypernetwork: the module runs with its own parameters, ``theta0``, as before.

    Args:
        module: a hypernetized network, or a module that holds exactly one.

    Returns:
        The network, the same object.
    """
    injector = the_injector(module)
    injector.clear()
    _require_grad(injector, True)
    _remove_hook(injector.root, injector)
    torch.compiler.reset()
    return injector.root


def materialize(
    module: nn.Module,
    h: Mapping[str, Any] | None = None,
    /,
    *,
    recalibrate: Iterable[Any] | None = None,
    **components: Any,
) -> nn.Module:
    """Take out the plain network for one ``h``: a copy with ordinary parameters and no trace of the hypernetwork.

    Attributes of the network that the plug-in sets to ``h`` (``net.dropout.p``) hold its value in the copy.

    Args:
        module: a hypernetized network, or a LightningModule (any module) that holds exactly one.
        h: component -> value.
        recalibrate: batches on which the running statistics of BatchNorm and InstanceNorm layers are estimated anew at
            this ``h``; of a tuple or list, as many items as the network's ``forward`` requires are used.
        **components: ``h`` for names that are Python identifiers.

    Returns:
        A new network; ``module`` is not changed.

    >>> import lightning_mip as mip
    >>> net = nn.Linear(3, 2)
    >>> hyper = mip.hypernetize(net, {"lam": mip.Uniform(0, 1)})
    >>> plain, x = mip.materialize(net, lam=0.3), torch.ones(1, 3)
    >>> with mip.at(net, lam=0.3):
    ...     bool((net(x) - plain(x)).abs().max() < 1e-6)
    True
    """
    injector = the_injector(module)
    given = injector.one(injector.hypernet.space.given(h, components))
    with injector.paused(), torch.no_grad():
        # The memo stands in for both, so that the copy leaves the hypernetwork behind, also one that the root holds.
        memo = {id(injector): None, id(injector.hypernet): None, **_computed(injector.root)}
        plain = copy.deepcopy(injector.root, memo)
        write_into(memo, injector.bound_places, given)
        _remove_hook(plain, None)
        # Torch copies the parameters of scripted modules as tensors that are not trained.
        for name, copied in plain.named_parameters():
            copied.requires_grad_(injector.root.get_parameter(name).requires_grad)
        with evaluated(injector.hypernet):
            weights = injector.weights(given)
        check_finite(weights, injector.hypernet.space, given)
        for name, weight in weights.items():
            plain.get_parameter(name).copy_(weight)
    for name in injector.frozen:
        plain.get_parameter(name).requires_grad_(True)
    if recalibrate is not None:
        _recalibrate(plain, recalibrate)
    return plain


def summary(module: nn.Module, h: Priors | None = None, **arguments: Any) -> Summary:
    """Print what is, or would be, generated: sizes, shares, and the memory that training takes.

    Args:
        module: a hypernetized network; or, with ``h``, one to be hypernetized, for which nothing large is allocated.
        h: the priors, for a network that is not hypernetized yet.
        **arguments: those of `hypernetize`.

    Returns:
        The numbers, as a `Summary`; ``str`` of it is the printed table.
    """
    check_module(module)
    if h is None:
        if arguments:
            raise TypeError(f"h is not given, so there is nothing to plan with {', '.join(arguments)}; pass h=.")
        report = summarize(the_injector(module).hypernet)
    else:
        space = h if isinstance(h, HSpace) else HSpace(h)
        names = select(module, arguments.pop("include", "*"), arguments.pop("exclude", ()))
        theta0 = {name: module.get_parameter(name) for name in names}
        hypernet = arguments.pop("hypernet", None)
        arguments.pop("force", None)
        if hypernet is None:
            check_known(arguments)
            report = _plan(space, theta0, arguments)
        else:
            shapes = {name: parameter.shape for name, parameter in theta0.items()}
            with torch.device("meta"):
                hypernet = _made(hypernet, space, shapes)
            _check_fits(hypernet, space, shapes, arguments)
            report = summarize(hypernet)
    print(report)
    return report


def _plan(space: HSpace, theta0: Mapping[str, Tensor], arguments: dict[str, Any]) -> Summary:
    shapes = {name: parameter.shape for name, parameter in theta0.items()}
    if isinstance(arguments.get("trunk"), nn.Module):
        arguments = {**arguments, "trunk": copy.deepcopy(arguments["trunk"]).to("meta")}
    with torch.device("meta"):
        return summarize(HyperNetwork(space, shapes, **arguments).to(_dtype(theta0)))


def check_known(arguments: Mapping[str, Any], taker: str = "HyperNetwork", own: Iterable[str] = ()) -> None:
    """Raise TypeError for arguments that `HyperNetwork` does not have.

    Args:
        arguments: name -> value.
        taker: what was given them.
        own: the names of its other arguments.
    """
    known = [name for name in inspect.signature(HyperNetwork).parameters if name not in ("space", "shapes")]
    unknown = next((name for name in arguments if name not in known), None)
    if unknown is not None:
        close = difflib.get_close_matches(str(unknown), [*own, *known], n=1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        mine = [*own, f"and those of HyperNetwork: {known[0]}"] if own else known[:1]
        listed = ", ".join([*mine, *known[1:]])
        raise TypeError(f"{taker} has no argument {unknown!r}; its arguments are {listed}.{hint}")


def _made(hypernet: Any, space: HSpace, shapes: dict[str, torch.Size]) -> HyperNetwork:
    if isinstance(hypernet, HyperNetwork):
        return hypernet
    try:
        made = hypernet(space, shapes)
    except TypeError as error:  # of a config, with arguments that there are not
        raise TypeError(f"hypernet cannot be made: {on_one_line(str(error))}") from error
    if not isinstance(made, HyperNetwork):
        raise TypeError(f"hypernet made {type(made).__name__}, expected something that makes a HyperNetwork.")
    return made


def _dtype(theta0: Mapping[str, Tensor]) -> torch.dtype:
    """The hypernetwork's own: that of the primary, but not below single precision."""
    return torch.promote_types(next(iter(theta0.values())).dtype, torch.float32)


def _check_memory(report: Summary, device: torch.device) -> None:
    available = available_memory(device)
    if available is not None and report.training_bytes > available:
        raise MemoryError(
            f"{report}\nTraining this hypernetwork takes {report.training_bytes / 2**30:.1f} GiB, the device has "
            f"{available / 2**30:.1f} GiB. Generate less (include=, exclude=, head=LowRank(4)), make the last of "
            "hidden_sizes smaller, or pass force=True."
        )


def _check_free(module: nn.Module) -> None:
    for name, child in module.named_modules():
        if any(isinstance(hook, Injector) for hook in child._forward_pre_hooks.values()):
            raise ValueError(
                f"{type(module).__name__} is hypernetized already (at {name or 'its root'}); call mip.dehypernetize "
                "first."
            )


def _check_fits(
    hypernet: HyperNetwork, space: HSpace, shapes: Mapping[str, torch.Size], arguments: Mapping[str, Any]
) -> None:
    if arguments:
        raise TypeError(f"hypernet is given, so it takes no further arguments, but got {', '.join(arguments)}.")
    if hypernet.space.config() != space.config():
        raise ValueError(f"hypernet was made for h = {hypernet.space}, but h is {space}; pass the same space.")
    if hypernet.shapes != shapes:
        names = [*shapes, *(name for name in hypernet.shapes if name not in shapes)]
        name = next(name for name in names if hypernet.shapes.get(name) != shapes.get(name))
        mine, wanted = (s.get(name) and tuple(s[name]) for s in (hypernet.shapes, shapes))
        raise ValueError(
            f"hypernet does not fit the network: {name} has shape {mine} in the hypernetwork and {wanted} in the "
            "network; make it from the network's own shapes."
        )


def _silence_padding(module: nn.Module, names: Mapping[str, list[str]], hypernet: HyperNetwork) -> None:
    """The padding row of an embedding is never trained, so what the head draws for it would stay."""
    first = {alias: name for name, aliases in names.items() for alias in aliases}
    for path, child in module.named_modules(remove_duplicate=False):
        weight = f"{path}.weight" if path else "weight"
        if isinstance(child, nn.Embedding) and child.padding_idx is not None and weight in first:
            hypernet.head.silence(first[weight], child.padding_idx)


def _warn_of_batch_norm(module: nn.Module) -> None:
    mixed = [
        name for name, child in module.named_modules() if isinstance(child, _NormBase) and child.track_running_stats
    ]
    if mixed:
        shown = ", ".join(mixed[:5]) + (f" and {len(mixed) - 5} more" if len(mixed) > 5 else "")
        warnings.warn(
            f"Norm layers keep running statistics that mix over all h: {shown}. In evaluation they are right for "
            "no single h; use GroupNorm or track_running_stats=False, or estimate them anew at the chosen h by "
            "mip.materialize(..., recalibrate=dataloader).",
            stacklevel=3,
        )


def _computed(module: nn.Module) -> dict[int, Tensor]:
    """By id, a stand-in for each tensor that hooks compute (the old weight_norm), which torch refuses to copy."""
    values = [value for child in module.modules() for value in vars(child).values()]
    return {id(value): value.detach().clone() for value in values if isinstance(value, Tensor) and not value.is_leaf}


def _require_grad(injector: Injector, flag: bool) -> None:
    for name in injector.frozen:
        injector.root.get_parameter(name).requires_grad_(flag)


def _remove_hook(module: nn.Module, hook: Injector | None) -> None:
    for child in module.modules():
        for key in [key for key, found in child._forward_pre_hooks.items() if found is hook]:
            del child._forward_pre_hooks[key]


def _recalibrate(module: nn.Module, batches: Iterable[Any]) -> None:
    norms = [m for m in module.modules() if isinstance(m, _NormBase) and m.track_running_stats]
    modes = [(m, m.training) for m in module.modules()]
    momenta = [norm.momentum for norm in norms]
    module.eval()
    for norm in norms:
        norm.reset_running_stats()
        norm.train()
    seen, device = 0, next(module.parameters()).device
    with torch.no_grad():
        for seen, batch in enumerate(batches, start=1):
            for norm in norms:
                # None is the mean over all calls, but InstanceNorm takes it for "do not update".
                norm.momentum = None if isinstance(norm, _BatchNorm) else 1 / seen
            module(*moved(inputs_of(module, batch), device))
    if not seen:
        raise ValueError("recalibrate has no batches, expected at least one to estimate running statistics on.")
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    for child, mode in modes:
        child.training = mode
