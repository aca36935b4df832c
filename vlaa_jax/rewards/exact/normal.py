"""An exact normal form: quotients of polynomials over Q in variables and kernels.

Kernels are pi, roots of primes, e and primes to the power of a monomial, logarithms of primes, and
roots, powers and functions of anything else, named by their argument's normal form. Equal forms are
equal expressions wherever both are defined, for real variables and principal roots. Unequal forms
prove nothing (sin 2x is not recognised as 2 sin x cos x): ``floats`` shows differences.

A polynomial is a dict from monomials to nonzero Fractions; a monomial is a sorted tuple of
(kernel name, positive power).
"""

from fractions import Fraction
from math import gcd
from typing import NamedTuple

from vlaa_jax.rewards.exact.trees import Tree, Unsupported

Monomial = tuple[tuple[str, int], ...]
Poly = dict[Monomial, Fraction]

MAX_WORK = 20_000
"""Products of two terms, per expression."""
MAX_BITS = 1_000
"""Of one coefficient."""
MAX_POWER = 24
MAX_FACTORED = 10**9
_EVEN = frozenset({"cos", "cosh", "abs"})
_ODD = frozenset({"sin", "arcsin", "arctan", "sinh"})

_RATIOS = {
    "tan": ("sin", "cos"), "cot": ("cos", "sin"), "sec": ("one", "cos"), "csc": ("one", "sin"),
    "tanh": ("sinh", "cosh"),
}  # fmt: skip

ONE: Poly = {(): Fraction(1)}


class Quotient(NamedTuple):
    """num / den; den is never the zero polynomial."""

    num: Poly
    den: Poly


def factors(number: int) -> dict[int, int]:
    """Prime factors of a positive number with their powers.

    Raises:
        Unsupported: it is too large to be factored in passing.
    """
    if number > MAX_FACTORED:
        raise Unsupported
    found: dict[int, int] = {}
    prime = 2
    while prime * prime <= number:
        while number % prime == 0:
            found[prime] = found.get(prime, 0) + 1
            number //= prime
        prime += 1 + prime % 2
    if number > 1:
        found[number] = found.get(number, 0) + 1
    return found


class Algebra:
    """Arithmetic of normal forms under one budget of work."""

    def __init__(self) -> None:
        self._work = MAX_WORK
        self._squares: dict[str, tuple[int, Poly]] = {}
        """kernel -> (n, p): its n-th power is p, as cos^2 is 1 - sin^2; not for roots of primes."""

    # -- polynomials

    def add(self, left: Poly, right: Poly) -> Poly:
        """The sum of two polynomials."""
        total = dict(left)
        for monomial, value in right.items():
            value += total.get(monomial, 0)
            if value:
                total[monomial] = value
            else:
                total.pop(monomial, None)
        return total

    def times(self, left: Poly, right: Poly) -> Poly:
        """The product of two polynomials.

        Raises:
            Unsupported: the budget of work is spent, or a coefficient has grown too long.
        """
        self._work -= len(left) * len(right)
        if self._work < 0:
            raise Unsupported
        total: Poly = {}
        for left_monomial, left_value in left.items():
            for right_monomial, right_value in right.items():
                value = left_value * right_value
                if value.numerator.bit_length() + value.denominator.bit_length() > MAX_BITS:
                    raise Unsupported
                for monomial, factor in self._joined(left_monomial, right_monomial).items():
                    found = total.get(monomial, 0) + value * factor
                    if found:
                        total[monomial] = found
                    else:
                        total.pop(monomial, None)
        return total

    def _joined(self, left: Monomial, right: Monomial) -> Poly:
        """The product of two monomials, with powers of roots carried out."""
        if not left or not right:
            return {left or right: Fraction(1)}
        powers = dict(left)
        for kernel, power in right:
            powers[kernel] = powers.get(kernel, 0) + power
        value, rest = Fraction(1), []
        for kernel, power in list(powers.items()):
            degree, prime = _prime_root(kernel)
            if prime and power >= degree:
                value *= prime ** (power // degree)
                powers[kernel] = power % degree
            elif kernel in self._squares and power >= self._squares[kernel][0]:
                degree, radicand = self._squares[kernel]
                rest += [radicand] * (power // degree)
                powers[kernel] = power % degree
        product: Poly = {tuple(sorted((k, p) for k, p in powers.items() if p)): value}
        for radicand in rest:
            product = self.times(product, radicand)
        return product

    # -- quotients

    def plus(self, left: Quotient, right: Quotient) -> Quotient:
        """The sum of two quotients."""
        if left.den == right.den:
            return Quotient(self.add(left.num, right.num), left.den)
        over = self.add(self.times(left.num, right.den), self.times(right.num, left.den))
        return Quotient(over, self.times(left.den, right.den))

    def product(self, left: Quotient, right: Quotient) -> Quotient:
        """The product of two quotients."""
        return Quotient(self.times(left.num, right.num), self.times(left.den, right.den))

    def inverse(self, value: Quotient) -> Quotient:
        """One over a quotient.

        Raises:
            Unsupported: it is zero.
        """
        if not value.num:
            raise Unsupported  # division by zero
        return Quotient(value.den, value.num)

    def integer_power(self, base: Quotient, power: int) -> Quotient:
        """A quotient to a whole power, of either sign.

        Raises:
            Unsupported: the power is too large, or it is zero to the power of zero.
        """
        if abs(power) > MAX_POWER:
            raise Unsupported
        if power < 0:
            base = self.inverse(base)
        if not base.num and not power:
            raise Unsupported  # 0^0
        result = Quotient(ONE, ONE)
        for _ in range(abs(power)):
            result = self.product(result, base)
        return result

    def equal(self, left: Quotient, right: Quotient) -> bool:
        """Whether two forms are the same; False proves nothing.

        Raises:
            Unsupported: it takes too much work to tell.
        """
        if left.den == right.den:
            return left.num == right.num
        return self.times(left.num, right.den) == self.times(right.num, left.den)

    # -- trees

    def form(self, tree: Tree) -> Quotient:
        """The normal form of a tree.

        Raises:
            Unsupported: it has none here, or it takes too much work.
        """
        kind = tree[0]
        if kind == "num":
            return constant(tree[1])
        if kind == "var":
            return _kernel(tree[1])
        if kind == "pi":
            return _kernel("'pi")
        if kind == "e":
            return self._exponential("e", constant(Fraction(1)))
        if kind == "neg":
            value = self.form(tree[1])
            return Quotient({m: -c for m, c in value.num.items()}, value.den)
        if kind == "add":
            return self.plus(self.form(tree[1]), self.form(tree[2]))
        if kind == "mul":
            return self.product(self.form(tree[1]), self.form(tree[2]))
        if kind == "div":
            return self.product(self.form(tree[1]), self.inverse(self.form(tree[2])))
        if kind == "pow":
            return self._power(tree[1], tree[2])
        if kind == "root":
            return self._root(self.form(tree[2]), tree[1])
        if kind == "log":
            base = self.form(tree[1])
            return self.product(self._ln(self.form(tree[2])), self.inverse(self._ln(base)))
        if kind == "fn":
            return self._function(tree[1], self.form(tree[2]))
        raise Unsupported

    def _power(self, base_tree: Tree, exponent_tree: Tree) -> Quotient:
        exponent = self.form(exponent_tree)
        if base_tree == ("e",):
            return self._exponential("e", exponent)
        base = self.form(base_tree)
        number = rational(exponent)
        if number is not None:
            if number.denominator == 1:
                return self.integer_power(base, number.numerator)
            if number.denominator > 9:
                raise Unsupported
            return self.integer_power(self._root(base, number.denominator), number.numerator)
        value = rational(base)
        if value is None:
            return _kernel(f"'pow({name(base)};{name(exponent)})")
        if value <= 0:
            raise Unsupported
        result = Quotient(ONE, ONE)
        for sign, part in ((1, value.numerator), (-1, value.denominator)):
            for prime, count in factors(part).items():
                scaled = self.product(exponent, constant(Fraction(sign * count)))
                result = self.product(result, self._exponential(str(prime), scaled))
        return result

    def _exponential(self, base: str, exponent: Quotient) -> Quotient:
        """e or a prime to a power: sums become products of kernels."""
        if list(exponent.den) != [()]:
            return _kernel(f"'exp({base};{name(exponent)})")
        scale = exponent.den[()]
        result = Quotient(ONE, ONE)
        for monomial, value in exponent.num.items():
            value = value / scale
            if not monomial and base != "e":
                if value.denominator > 9:
                    raise Unsupported
                part = self.integer_power(
                    self._root(constant(Fraction(int(base))), value.denominator), value.numerator
                )
            else:
                unit = {monomial: Fraction(1, value.denominator)}
                kernel = _kernel(f"'exp({base};{_poly_name(unit)})")
                part = self.integer_power(kernel, value.numerator)
            result = self.product(result, part)
        return result

    def _root(self, value: Quotient, degree: int) -> Quotient:
        """The principal root."""
        number = rational(value)
        if number is not None:
            if number < 0:
                raise Unsupported
            over = self._prime_roots(number.numerator, degree)
            return self.product(over, self.inverse(self._prime_roots(number.denominator, degree)))
        content = positive_content(value.num) / positive_content(value.den)
        primitive = self.product(value, constant(1 / content))
        if list(primitive.den) == [()]:
            whole = {m: c / primitive.den[()] for m, c in primitive.num.items()}
            label = f"'root{degree}({_poly_name(whole)})"
            self._squares[label] = (degree, whole)
        else:
            label = f"'root{degree}({name(primitive)})"
        return self.product(_kernel(label), self._root(constant(content), degree))

    def _prime_roots(self, number: int, degree: int) -> Quotient:
        if number == 0:
            return constant(Fraction(0))
        result = Quotient(ONE, ONE)
        for prime, count in factors(number).items():
            common = gcd(count, degree)
            lower, power = degree // common, count // common
            value: Poly = {(): Fraction(prime ** (power // lower))}
            if power % lower:
                value = self.times(value, {((f"'r{lower}:{prime}", power % lower),): Fraction(1)})
            result = self.product(result, Quotient(value, ONE))
        return result

    def _ln(self, value: Quotient) -> Quotient:
        number = rational(value)
        if number is None:
            if value == self._exponential("e", constant(Fraction(1))):
                return constant(Fraction(1))
            return _kernel(f"'ln({name(value)})")
        if number <= 0:
            raise Unsupported
        total: Poly = {}
        for sign, part in ((1, number.numerator), (-1, number.denominator)):
            for prime, count in factors(part).items():
                total = self.add(total, {((f"'ln:{prime}", 1),): Fraction(sign * count)})
        return Quotient(total, ONE)

    def _function(self, function: str, argument: Quotient) -> Quotient:
        if function == "exp":
            return self._exponential("e", argument)
        if function == "ln":
            return self._ln(argument)
        if function in _RATIOS:
            over, under = (self._function(n, argument) for n in _RATIOS[function])
            return self.product(over, self.inverse(under))
        if function == "one":
            return constant(Fraction(1))
        number = rational(argument)
        if function == "abs" and number is not None:
            return constant(abs(number))
        sign = Fraction(1)
        if _leads_negative(argument) and function in _EVEN | _ODD:
            argument = Quotient({m: -c for m, c in argument.num.items()}, argument.den)
            sign = Fraction(-1) if function in _ODD else Fraction(1)
        if function == "abs":
            sign = positive_content(argument.num) / positive_content(argument.den)
            argument = self.product(argument, constant(1 / sign))
        label = name(argument)
        if function in ("cos", "cosh"):
            other = f"'{'sin' if function == 'cos' else 'sinh'}({label})"
            square = Fraction(-1 if function == "cos" else 1)
            self._squares[f"'{function}({label})"] = (2, {(): Fraction(1), ((other, 2),): square})
        if function == "abs" and list(argument.den) == [()]:
            whole = {m: c / argument.den[()] for m, c in argument.num.items()}
            self._squares[f"'abs({label})"] = (2, self.times(whole, whole))
        return self.product(constant(sign), _kernel(f"'{function}({label})"))


def _prime_root(kernel: str) -> tuple[int, int]:
    """(degree, prime) of the root of a prime; (0, 0) for other kernels."""
    if not kernel.startswith("'r") or kernel[3:4] != ":":
        return 0, 0
    return int(kernel[2]), int(kernel[4:])


def constant(value: Fraction) -> Quotient:
    """A rational number as a form."""
    return Quotient({(): value} if value else {}, ONE)


def _kernel(label: str) -> Quotient:
    return Quotient({((label, 1),): Fraction(1)}, ONE)


def rational(form: Quotient) -> Fraction | None:
    """The value of a form that is a rational number; else None."""
    if not form.num:
        return Fraction(0)
    if list(form.num) == [()] and list(form.den) == [()]:
        return form.num[()] / form.den[()]
    return None


def positive_content(poly: Poly) -> Fraction:
    """The positive rational by which a nonzero polynomial is a multiple of a primitive one."""
    over, under = 0, 1
    for value in poly.values():
        over = gcd(over, value.numerator)
        under = under * value.denominator // gcd(under, value.denominator)
    return Fraction(over, under)


def variables(form: Quotient) -> frozenset[str] | None:
    """Names of the variables of a form without kernels; None where there are kernels."""
    names = {kernel for poly in form for monomial in poly for kernel, _ in monomial}
    return None if any(label.startswith("'") for label in names) else frozenset(names)


def _leads_negative(form: Quotient) -> bool:
    if not form.num:
        return False
    return (form.num[max(form.num)] < 0) != (form.den[max(form.den)] < 0)


def name(form: Quotient) -> str:
    """A text that is the same for equal texts of forms: scale and order do not matter."""
    scale = positive_content(form.den)
    if form.den[max(form.den)] < 0:
        scale = -scale
    num = {m: c / scale for m, c in form.num.items()}
    den = {m: c / scale for m, c in form.den.items()}
    return _poly_name(num) if den == ONE else f"{_poly_name(num)}/{_poly_name(den)}"


def _poly_name(poly: Poly) -> str:
    return "+".join(
        f"{poly[m]}" + "".join(f"*{kernel}^{power}" for kernel, power in m) for m in sorted(poly)
    )
