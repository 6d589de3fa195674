"""The rule of the paper: static token counts in, one Python float out, the scale of self-attention.

Notation, that of Jin et al., "Training-free Diffusion Model Adaptation for Variable-Sized Text-to-Image Synthesis",
NeurIPS 2023: N is `tokens`, the tokens a layer attends over now; T is `train_tokens`, those of training; d is
`head_dim` and lambda the scale, `sqrt(log_T N / d)` (Eq. 7), in place of the `1 / sqrt(d)` of training.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from .errors import UserError


class ScaleRule(StrEnum):
    """How the scale of a self-attention layer follows from its token counts."""

    ORIGINAL = "original"
    """`1 / sqrt(d)`, as in training."""
    ENTROPY = "entropy"
    """`sqrt(log_T N / d)`, the paper's Eq. 7."""
    FIXED = "fixed"
    """A given multiplier of `1 / sqrt(d)`, the same at every size."""


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
        train_entropy: E_T in nats. The rules known so far are the case of 0 and refuse another value.

    Source: Eq. 7 of the paper. Raises UserError for counts that are not positive, for T below 2, for an unknown rule.
    """
    if train_entropy != 0.0:
        raise UserError(f"train_entropy is {train_entropy!r}: rules {', '.join(ScaleRule)} take none; leave it out")
    if not _is_count(head_dim) or head_dim < 1:
        raise UserError(f"head_dim is {head_dim!r}: give the width of one attention head, 1 or more")
    return Scaling(as_rule(rule), multiplier).multiplier_at(0, tokens, train_tokens) / math.sqrt(head_dim)


@dataclass(frozen=True)
class Scaling:
    """A rule with its multiplier: what a sweep's method, or an argument `rule=`, resolves to. Hashable, so static."""

    rule: ScaleRule = ScaleRule.ENTROPY
    multiplier: float | tuple[float, ...] = 1.0
    """Only for rule `fixed`: one multiplier for all levels, or one a level, finest first."""

    def __post_init__(self):
        object.__setattr__(self, "rule", as_rule(self.rule))
        object.__setattr__(self, "multiplier", _multiplier(self.multiplier))
        if self.rule is not ScaleRule.FIXED and self.multiplier != 1.0:
            raise UserError(
                f"rule {self.rule.value!r} takes no multiplier, got {self.multiplier!r}: use 'fixed' or leave it out"
            )

    @classmethod
    def of(cls, value: "str | ScaleRule | Scaling | Mapping[str, object]", multiplier: object = 1.0) -> "Scaling":
        """From a rule's name, or `{"rule": "fixed", "multiplier": 0.8}`. Raises UserError where it is neither."""
        if isinstance(value, Scaling):
            return value if multiplier == 1.0 else cls(value.rule, multiplier)  # pyright: ignore[reportArgumentType]
        if not isinstance(value, Mapping):
            return cls(as_rule(value), multiplier)  # pyright: ignore[reportArgumentType]
        unknown = sorted(set(value) - {"rule", "multiplier"})
        if unknown or "rule" not in value:
            raise UserError(f"a rule is a name or {{rule: fixed, multiplier: 0.8}}, got {dict(value)!r}")
        return cls(as_rule(value["rule"]), value.get("multiplier", multiplier))  # pyright: ignore[reportArgumentType]

    @property
    def label(self) -> str:
        """A short name that tells two methods apart: `entropy`, `fixed:0.8`, `fixed:0.8,1,1.1`."""
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

    def multiplier_at(self, level: int, tokens: int, train_tokens: int) -> float:
        """The multiplier of `1 / sqrt(d)` at one level (0 is the finest)."""
        _check_tokens(tokens, train_tokens)
        if self.rule is ScaleRule.ENTROPY:
            return entropy_multiplier(tokens, train_tokens)
        if isinstance(self.multiplier, tuple):
            return self.multiplier[level]
        return self.multiplier

    def scale_at(self, level: int, tokens: int, train_tokens: int, head_dim: int) -> float:
        """The scale lambda itself, a Python float, for a head of width `head_dim` at one level."""
        return self.multiplier_at(level, tokens, train_tokens) / math.sqrt(head_dim)


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
