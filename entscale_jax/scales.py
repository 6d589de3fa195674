"""The rule of the paper: static token counts in, one Python float out, the scale of self-attention.

Notation, that of Jin et al., "Training-free Diffusion Model Adaptation for Variable-Sized Text-to-Image Synthesis",
NeurIPS 2023: N is `tokens`, the tokens a layer attends over now; T is `train_tokens`, those of training; d is
`head_dim` and lambda the scale, `sqrt(log_T N / d)` (Eq. 7), in place of the `1 / sqrt(d)` of training. E_T is
`train_entropy`, a layer's mean entropy at T tokens in nats, which the paper does not have: see docs/method.md.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

from .errors import UserError
from .train_entropy import TrainEntropy


class ScaleRule(StrEnum):
    """How the scale of a self-attention layer follows from its token counts."""

    ORIGINAL = "original"
    """`1 / sqrt(d)`, as in training."""
    ENTROPY = "entropy"
    """`sqrt(log_T N / d)`, the paper's Eq. 7."""
    FIXED = "fixed"
    """A given multiplier of `1 / sqrt(d)`, the same at every size."""
    CALIBRATED = "calibrated"
    """`sqrt((log N - E_T) / (log T - E_T) / d)`, by which the paper's Eq. 5 keeps entropy at E_T."""


class UndefinedScale(UserError):
    """Rule `calibrated` has no value: log N or log T does not exceed E_T."""


LevelMultiplier = float | tuple[float, float] | None
"""What the layers of a level are multiplied by: one number, or the least and the largest where they differ; None where
the rule has no value in one of them, NaN where the level has no layer."""


def as_rule(rule: "str | ScaleRule") -> ScaleRule:
    """The rule of that name. Raises UserError for an unknown one."""
    try:
        return ScaleRule(rule)
    except ValueError:
        known = ", ".join(ScaleRule)
        raise UserError(f"unknown rule {rule!r}: use one of {known}") from None


def entropy_multiplier(tokens: int, train_tokens: int) -> float:
    """`sqrt(log_T N)`, by which Eq. 7 multiplies `1 / sqrt(d)`. Raises UserError for N < 1 or T < 2."""
    _check_tokens(tokens, train_tokens)
    return math.sqrt(math.log(tokens) / math.log(train_tokens))


def calibrated_multiplier(tokens: int, train_tokens: int, train_entropy: float, layer: str = "") -> float:
    """`sqrt((log N - E_T) / (log T - E_T))`: 1 at N = T, and the paper's where E_T is 0.

    Source: Eq. 5 of the paper; the derivation is in docs/method.md. Raises UndefinedScale where either difference is
    not above 0, and UserError for N < 1 or T < 2.
    """
    _check_tokens(tokens, train_tokens)
    now, then = math.log(tokens) - train_entropy, math.log(train_tokens) - train_entropy
    if now <= 0 or then <= 0:
        count, name = (tokens, "log N") if then > 0 else (train_tokens, "log T")
        raise UndefinedScale(
            f"rule 'calibrated' has no value{f' in layer {layer}' if layer else ''} at N = {tokens}, T = "
            f"{train_tokens}, E_T = {train_entropy:.4g}: {name} = {math.log(count):.4g} does not exceed E_T; draw a "
            "larger size, or use another rule"
        )
    return math.sqrt(now / then)


def attention_scale(
    tokens: int,
    train_tokens: int,
    head_dim: int,
    *,
    rule: ScaleRule | str = ScaleRule.ENTROPY,
    multiplier: float = 1.0,
    train_entropy: float = 0.0,
) -> float:
    """The factor lambda on query-key products of one self-attention layer.

    Args:
        tokens: N, tokens of the layer at the size to be drawn.
        train_tokens: T, tokens of the same layer at the training size, 2 or more.
        head_dim: d, the width of one head.
        rule: which rule; see `ScaleRule`.
        multiplier: the multiplier of `1 / sqrt(d)` under rule `fixed`; other rules refuse any value but 1.
        train_entropy: E_T in nats, for rule `calibrated`, of which 0 makes the paper's; others refuse any value but 0.

    Source: Eq. 7 of the paper, and Eq. 5 for `calibrated`. Raises UserError for counts that are not positive, for T
    below 2, for an unknown rule, and where `calibrated` has no value.
    """
    if not _is_count(head_dim) or head_dim < 1:
        raise UserError(f"head_dim is {head_dim!r}: give the width of one attention head, 1 or more")
    name = as_rule(rule)
    if name is not ScaleRule.CALIBRATED and train_entropy != 0.0:
        raise UserError(f"train_entropy is {train_entropy!r}: rule {name.value!r} takes none; leave it out")
    given = {_ALONE: train_entropy} if name is ScaleRule.CALIBRATED else None
    return Scaling.of(name, multiplier, given).scale_at(0, tokens, train_tokens, head_dim, _ALONE)


@dataclass(frozen=True)
class Scaling:
    """A rule with its multiplier: what a sweep's method, or an argument `rule=`, resolves to. Hashable, so static."""

    rule: ScaleRule = ScaleRule.ENTROPY
    multiplier: float | tuple[float, ...] = 1.0
    """Only for rule `fixed`: one multiplier for all levels, or one a level, finest first."""
    train_entropy: TrainEntropy | None = None
    """Only for rule `calibrated`; None until a model's own is filled in."""

    def __post_init__(self):
        object.__setattr__(self, "rule", as_rule(self.rule))
        object.__setattr__(self, "multiplier", _multiplier(self.multiplier))
        if self.rule is not ScaleRule.FIXED and self.multiplier != 1.0:
            raise UserError(
                f"rule {self.rule.value!r} takes no multiplier, got {self.multiplier!r}: use 'fixed' or leave it out"
            )
        if self.rule is not ScaleRule.CALIBRATED and self.train_entropy is not None:
            raise UserError(f"rule {self.rule.value!r} takes no train_entropy: use 'calibrated' or leave it out")

    @classmethod
    def of(
        cls,
        value: "str | ScaleRule | Scaling | Mapping[str, object]",
        multiplier: object = 1.0,
        train_entropy: object = None,
    ) -> "Scaling":
        """From a rule's name, or `{"rule": "fixed", "multiplier": 0.8}`. Raises UserError where it is neither.

        `train_entropy`, which may stand in the mapping too, is what `TrainEntropy.of` takes.
        """
        if isinstance(value, Scaling):
            scaling = value if multiplier == 1.0 else replace(value, multiplier=multiplier)
            return scaling if train_entropy is None else replace(scaling, train_entropy=_entropy(train_entropy))
        given = dict(value) if isinstance(value, Mapping) else {"rule": value}
        unknown = sorted(set(given) - {"rule", "multiplier", "train_entropy"})
        if unknown or "rule" not in given:
            raise UserError(f"a rule is a name or {{rule: fixed, multiplier: 0.8}}, got {given!r}")
        own = _entropy(given.get("train_entropy", train_entropy))
        return cls(as_rule(given["rule"]), given.get("multiplier", multiplier), own)  # pyright: ignore[reportArgumentType]

    @property
    def label(self) -> str:
        """A short name that tells two methods apart: `entropy`, `fixed:0.8`, `fixed:0.8,1,1.1`, `calibrated`.

        With E_T that are not the model's own `calibrated:` and their digest.
        """
        if self.train_entropy is not None and not self.train_entropy.shipped:
            return f"{self.rule.value}:{self.train_entropy.digest}"
        if self.rule is not ScaleRule.FIXED:
            return self.rule.value
        values = self.multiplier if isinstance(self.multiplier, tuple) else (self.multiplier,)
        return f"{self.rule.value}:{','.join(f'{value:.12g}' for value in values)}"

    def check_levels(self, levels: int) -> None:
        """Raises UserError where multipliers were given one a level and their count is not `levels`."""
        if isinstance(self.multiplier, tuple) and len(self.multiplier) != levels:
            raise UserError(
                f"multiplier has {len(self.multiplier)} values and the model {levels} levels: give one or {levels}"
            )

    def multiplier_at(self, level: int, tokens: int, train_tokens: int, layer: str = "") -> float:
        """The multiplier of `1 / sqrt(d)` at one level (0 is the finest), or of one layer there.

        Only rule `calibrated` asks which layer it is. Raises UndefinedScale where it has no value.
        """
        _check_tokens(tokens, train_tokens)
        if self.rule is ScaleRule.CALIBRATED:
            if self.train_entropy is None:
                raise UserError(f"layer {layer!r} has no E_T, which rule 'calibrated' needs: give train_entropy=")
            return calibrated_multiplier(tokens, train_tokens, self.train_entropy.at(layer), layer)
        if self.rule is ScaleRule.ENTROPY:
            return entropy_multiplier(tokens, train_tokens)
        if isinstance(self.multiplier, tuple):
            return self.multiplier[level]
        return self.multiplier

    def scale_at(self, level: int, tokens: int, train_tokens: int, head_dim: int, layer: str = "") -> float:
        """The scale lambda itself, a Python float, for a head of width `head_dim` at one level, or of one layer."""
        return self.multiplier_at(level, tokens, train_tokens, layer) / math.sqrt(head_dim)

    def over_layers(self, level: int, tokens: int, train_tokens: int, layers: Iterable[str]) -> LevelMultiplier:
        """What the layers of a level are multiplied by, for a table of levels."""
        if self.rule is not ScaleRule.CALIBRATED:
            return self.multiplier_at(level, tokens, train_tokens)
        try:
            found = [self.multiplier_at(level, tokens, train_tokens, layer) for layer in layers]
        except UndefinedScale:
            return None
        if not found:
            return math.nan
        return found[0] if min(found) == max(found) else (min(found), max(found))


def multiplier_text(value: LevelMultiplier) -> str:
    """`1.118`; `1.341-1.420`, the least and the largest of the layers; `undefined`; `-` of a level without layers."""
    if value is None:
        return "undefined"
    if isinstance(value, tuple):
        return "-".join(f"{each:.3f}" for each in value)
    return "-" if math.isnan(value) else f"{value:.3f}"


_ALONE = "layer"
"""What a layer is called that stands by itself."""


def _entropy(value: object) -> TrainEntropy | None:
    return None if value is None else TrainEntropy.of(value)  # pyright: ignore[reportArgumentType]


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _check_tokens(tokens: int, train_tokens: int) -> None:
    if not _is_count(tokens) or tokens < 1:
        raise UserError(f"tokens is {tokens!r}: give the number of tokens at this size, a whole number above 0")
    if not _is_count(train_tokens) or train_tokens < 2:
        raise UserError(
            f"train_tokens is {train_tokens!r}: log_T needs 2 or more; check sample_size or give train_size="
        )


def _multiplier(value: object) -> float | tuple[float, ...]:
    if isinstance(value, Sequence) and not isinstance(value, str):
        if not value:
            raise UserError("multiplier is empty: give one number, or one a level")
        return tuple(_positive(number) for number in value)
    return _positive(value)


def _positive(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value <= 0:
        raise UserError(f"multiplier is {value!r}: give a finite number above 0, or one a level")
    return float(value)
