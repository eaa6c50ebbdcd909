"""What the numbers of a diagnosis mean, one line each, in plain words."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lightning_mip.magnitude import shape_of

if TYPE_CHECKING:
    from lightning_mip.diagnosis.report import Diagnosis

# How much worse another h must be, relatively, to say that h matters a little, and that it matters.
_LITTLE, _MUCH = 0.005, 0.02
# A gap below so many standard errors may be chance.
_ERRORS = 2.0
# Beyond this factor, an optimizer step is not that of the plain network.
_STEP = 3.0


def kind(found: Diagnosis) -> str:
    """Whether the hypernetwork does anything, in a word.

    ``dead`` (it is the same for every h and no gradient reaches it), ``constant`` (the same for every h so far),
    ``unread`` (the loss does not depend on h), ``ignored``, ``weak``, ``matters``, ``wrong`` (another h is better), or
    ``unknown``.
    """
    matter = found.matter
    if not found.now.relative_spread:
        trained = found.gradients.across_h.get("hypernet") if found.gradients else None
        return "constant" if trained is None or any(trained.norms) else "dead"
    if matter.gap is None:
        return "unknown"
    if matter.reads_h is False:
        return "unread"
    if abs(matter.gap) < _LITTLE or abs(matter.gap) <= _ERRORS * matter.noise_share:
        return "ignored"
    if matter.gap < 0:
        return "wrong"
    return "matters" if matter.gap >= _MUCH else "weak"


def of_matter(found: Diagnosis) -> str:
    """Whether the hypernetwork does anything."""
    matter, h = found.matter, next(iter(found.h)) if len(found.h) == 1 else "h"
    scores = f"right h {_number(matter.right)}, shuffled h {_number(matter.shuffled)}"
    share = "" if matter.output_share is None else f"; {h} explains {matter.output_share:.1%} of the output's variation"
    zero = not found.now.delta.any()
    words = {
        "dead": f"the hypernetwork is dead: {_same(zero)} for every h, and no gradient reaches it (a zero head and a "
        "zero scale?)",
        "constant": f"the hypernetwork does nothing so far: {_same(zero)} for every h",
        "unknown": "only one value of h was seen, so there is nothing to compare with",
        "unread": f"the {matter.metric} does not depend on {h}: {scores}{share}. So it should be for a noise draw; a "
        f"dial must enter the {matter.metric}, and not by what evaluation mode, in which this is, switches off, as "
        "dropout",
        "ignored": f"the network ignores {h}: {scores}{share}",
        "wrong": f"{h} is learned wrongly: with weights of another h the {matter.metric} is better: {scores}{share}",
        "weak": f"{h} matters little: {scores}{share}",
        "matters": f"{h} matters: {scores}{share}",
    }
    return f"{words[kind(found)]}{_in_vain(found)}.{_components(found)}"


def of_magnitude(found: Diagnosis) -> str:
    """Whether the generated change is as large at every h."""
    now, init = found.now.exponent, found.at_init.exponent if found.at_init else None
    powers = ", ".join(f"{power:.2f} {when}" for power, when in ((init, "at init"), (now, "now")) if power is not None)
    if not powers:
        return "nothing to see: delta(h) is 0, or all h are about as large as each other."
    # How it is made decides: what is flat at init and grows now has learned to.
    word = shape_of(now if init is None else init)
    learned = " (learned)" if init is not None and shape_of(now) not in (word, "unknown") else ""
    theta = found.now.theta_exponent
    of_theta = "" if theta is None else f"; theta(h): {theta:.2f} now"
    advice = ". Small h hardly train: encoding='mip' makes all h alike" if word == "proportional" else ""
    return f"{word}: ||delta(h)|| goes as ||h|| to the power {powers}{learned}{of_theta}{advice}."


def of_gradients(found: Diagnosis) -> str | None:
    """What varies the gradient: h, or the data."""
    if found.gradients is None:
        return None
    h, data = (each.get("hypernet") for each in (found.gradients.across_h, found.gradients.across_data))
    if h is None or data is None:
        return "the hypernetwork is frozen, so it has no gradient."
    if h.noise is None or data.noise is None:
        return "no gradient reaches the hypernetwork."
    largest, smallest = max(h.norms), min(h.norms)
    varies = f"its norm varies {largest / smallest:.3g}-fold over h" if smallest else "it is 0 at some h"
    several = "draws_per_batch > 1 (of the plug-in: accumulate_grad_batches) takes the mean over several h"
    advice = f". {several}" if h.noise > 2 * max(data.noise, 0.5) else ""
    return (
        f"gradients of the hypernetwork scatter around their mean by {h.noise:.2g} times its norm across h, "
        f"{data.noise:.2g} times across batches; {varies}{advice}."
    )


def of_step(found: Diagnosis) -> str | None:
    """The learning rate that theta(h) feels."""
    step = found.step
    if step is None:
        return None
    if step.factor is None:
        return f"one step of {step.optimizer} does not move the plain network, so there is nothing to compare with."
    text = f"theta(h) moves {step.factor:.2g} times as far in a step of {step.optimizer} as the plain network"
    if 1 / _STEP <= step.factor <= _STEP:
        return f"{text} (within a factor of {_STEP:g}): lr {step.lr:g} means what it means there."
    advice = "Lower lr, or the scale of delta" if step.factor > 1 else "Raise lr"
    return f"{text}: at lr {step.lr:g} it trains as if at {step.lr * step.factor:.2g}. {advice}."


def of_trunk(found: Diagnosis) -> str:
    """Trunk units that never change."""
    dead, units = sum(layer.dead for layer in found.trunk), sum(layer.units for layer in found.trunk)
    where = ", ".join(f"{layer.dead} in {layer.layer}" for layer in found.trunk if layer.dead)
    return f"{dead} of {units} trunk units have the same value at all h{f' ({where})' if where else ''}."


def of_scale(found: Diagnosis) -> str:
    """Generated tensors whose scale is off."""
    if not found.off_scale:
        return "no generated tensor is off."
    shown = [f"{name}: {what}" for name, what in list(found.off_scale.items())[:3]]
    more = f"; and {len(found.off_scale) - 3} more" if len(found.off_scale) > 3 else ""
    return f"{len(found.off_scale)} of {len(found.now.names)} generated tensors are off: {'; '.join(shown)}{more}."


def _in_vain(found: Diagnosis) -> str:
    """Whether one network does as well at all h, though another h is worse."""
    matter = found.matter
    ones = {f"the one network of {matter.best_single_h}": matter.best_single}
    if matter.theta0 is not None:
        ones["theta0 alone"] = matter.theta0
    network = min(ones, key=lambda name: matter.relative(ones[name]))
    worse = matter.relative(ones[network])
    if kind(found) not in ("weak", "matters") or worse >= _LITTLE:
        return ""
    return f"; but {network} is {'better' if worse <= -_LITTLE else 'as good'} for all h: {_number(ones[network])}"


def _components(found: Diagnosis) -> str:
    """Which of several components the network listens to."""
    shares = {n: found.matter.worse(score) for n, score in found.matter.components.items() if score is not None}
    each = {name: share for name, share in shares.items() if share is not None}
    if len(found.h) < 2 or kind(found) in ("dead", "constant", "unread") or not each:
        return ""
    worse = ", ".join(f"{name} {share:+.1%}" for name, share in each.items())
    return f" Worse with one component shuffled: {worse}."


def _same(zero: bool) -> str:
    return "delta(h) is 0" if zero else "delta(h) is the same"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"
