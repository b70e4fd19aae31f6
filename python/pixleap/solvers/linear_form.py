"""Linear combinations of named values: what a solver's arithmetic becomes when it is traced."""

from __future__ import annotations

from collections.abc import Mapping


class LinearForm:
    """sum of coefficient * value over named values.

    Supports what solver descriptions need: +, -, unary -, and * or / by a number. A description
    that multiplies two forms, or adds a number to one, is not linear and raises TypeError.
    """

    __slots__ = ("terms",)

    def __init__(self, terms: Mapping[str, float]) -> None:
        self.terms = dict(terms)

    @classmethod
    def of(cls, name: str) -> LinearForm:
        return cls({name: 1.0})

    @property
    def symbol(self) -> str | None:
        """The name, where the form is exactly one value times 1."""
        if len(self.terms) == 1:
            name, coefficient = next(iter(self.terms.items()))
            if coefficient == 1.0:
                return name
        return None

    def substitute(self, values: Mapping[str, LinearForm]) -> LinearForm:
        """The form with named values replaced by forms."""
        result: dict[str, float] = {}
        for name, coefficient in self.terms.items():
            for inner, factor in values[name].terms.items() if name in values else ((name, 1.0),):
                result[inner] = result.get(inner, 0.0) + coefficient * factor
        return LinearForm(result)

    def without_zeros(self) -> LinearForm:
        """The form without terms of coefficient 0; one term stays."""
        kept = {n: c for n, c in self.terms.items() if c != 0.0}
        return LinearForm(kept or dict(list(self.terms.items())[:1]))

    def __add__(self, other: LinearForm) -> LinearForm:
        if not isinstance(other, LinearForm):
            return NotImplemented
        terms = dict(self.terms)
        for name, coefficient in other.terms.items():
            terms[name] = terms.get(name, 0.0) + coefficient
        return LinearForm(terms)

    def __mul__(self, factor: float) -> LinearForm:
        if isinstance(factor, LinearForm):
            return NotImplemented
        return LinearForm({name: c * float(factor) for name, c in self.terms.items()})

    __rmul__ = __mul__

    def __truediv__(self, divisor: float) -> LinearForm:
        if isinstance(divisor, LinearForm):
            return NotImplemented
        return LinearForm({name: c / float(divisor) for name, c in self.terms.items()})

    def __neg__(self) -> LinearForm:
        return self * -1.0

    def __sub__(self, other: LinearForm) -> LinearForm:
        return self + -other

    def __repr__(self) -> str:
        return " + ".join(f"{c:.6g} {name}" for name, c in self.terms.items()) or "0"
