"""Pairs of answers as people and models write them, for comparing verdicts of two verifiers."""

import random
from collections.abc import Callable

LETTERS = "xyabknrtx"


def pair(rng: random.Random) -> tuple[str, str]:
    """(gold, answer) in LaTeX without delimiters: often equal, often wrong by one detail."""
    return rng.choice(_SHAPES)(rng)


# -- expressions: nested tuples, spelled anew each time they are written


def _leaf(rng: random.Random, letters: str) -> tuple:
    kind = rng.random()
    if kind < 0.45:
        return ("int", rng.randint(1, 12))
    if kind < 0.55:
        return ("frac", rng.randint(1, 9), rng.randint(2, 9))
    if kind < 0.62:
        return ("dec", rng.choice([5, 15, 25, 125, 40]), rng.choice([1, 2]))
    if kind < 0.9 and letters:
        return ("var", rng.choice(letters))
    return rng.choice([("pi",), ("sqrt", ("int", rng.randint(2, 20))), ("int", 2)])


def _tree(rng: random.Random, depth: int, letters: str) -> tuple:
    if depth == 0:
        return _leaf(rng, letters)
    kind = rng.random()

    def below() -> tuple:
        return _tree(rng, depth - 1, letters)

    if kind < 0.42:
        return ("sum", *[below() for _ in range(rng.randint(2, 3))])
    if kind < 0.68:
        return ("prod", *[below() for _ in range(2)])
    if kind < 0.78:
        return ("pow", below(), rng.randint(2, 3))
    if kind < 0.85:
        return ("over", below(), below())
    if kind < 0.89:
        return ("sqrt", below())
    if kind < 0.92:
        return ("abs", below())
    if kind < 0.98 and letters:
        return ("fn", rng.choice(["sin", "cos", "tan", "ln", "log"]), below())
    return ("neg", below())


def _spell(tree: tuple, rng: random.Random) -> str:
    kind = tree[0]
    if kind == "int":
        return str(tree[1])
    if kind == "dec":
        return f"{tree[1] / 10 ** tree[2]:g}"
    if kind == "frac":
        return rng.choice(["\\frac{{{}}}{{{}}}", "\\dfrac{{{}}}{{{}}}", "{}/{}"]).format(*tree[1:])
    if kind == "var":
        return str(tree[1])
    if kind == "pi":
        return "\\pi"
    if kind == "sqrt":
        return f"\\sqrt{{{_spell(tree[1], rng)}}}"
    if kind == "abs":
        return rng.choice(["|{}|", "\\left|{}\\right|"]).format(_spell(tree[1], rng))
    if kind == "fn":
        argument = tree[2]
        if argument[0] in ("var", "int") and rng.random() < 0.4:
            return f"\\{tree[1]} {_spell(argument, rng)}"
        style = rng.choice(["\\{}({})", "\\{}\\left({}\\right)"])
        return style.format(tree[1], _spell(argument, rng))
    if kind == "over":
        return f"\\frac{{{_spell(tree[1], rng)}}}{{{_spell(tree[2], rng)}}}"
    if kind == "pow":
        return f"{_tight(tree[1], rng)}^" + rng.choice(["{}", "{{{}}}"]).format(tree[2])
    if kind == "neg":
        return f"-{_tight(tree[1], rng)}"
    if kind == "sum":
        terms = list(tree[1:])
        rng.shuffle(terms)
        text = _spell(terms[0], rng)
        for term in terms[1:]:
            said = _spell(term, rng)
            text += said if said.startswith("-") else rng.choice(["+{}", " + {}"]).format(said)
        return text
    return _product(tree, rng)


def _product(tree: tuple, rng: random.Random) -> str:
    factors = sorted(tree[1:], key=lambda f: f[0] not in ("int", "dec"))
    if rng.random() < 0.3:
        rng.shuffle(factors)
    text = _tight(factors[0], rng)
    for factor in factors[1:]:
        said = _tight(factor, rng)
        if said[0].isdigit() or said[0] == "-" or rng.random() < 0.25:
            text += rng.choice(["\\cdot ", " \\times ", "*"]) + said
        else:
            text += ("" if said[0] in "\\(" else rng.choice(["", " "])) + said
    return text


def _tight(tree: tuple, rng: random.Random) -> str:
    said = _spell(tree, rng)
    if tree[0] in ("sum", "neg", "prod", "over", "fn", "pow", "frac") or said.startswith("-"):
        if tree[0] in ("frac", "over") and said.startswith("\\") and rng.random() < 0.5:
            return said
        return rng.choice(["({})", "\\left({}\\right)"]).format(said)
    return said


def _changed(tree: tuple, rng: random.Random) -> tuple:
    """The tree with one detail different."""
    places = [i for i, part in enumerate(tree) if isinstance(part, tuple)]
    if places and rng.random() < 0.85:
        place = rng.choice(places)
        return (*tree[:place], _changed(tree[place], rng), *tree[place + 1 :])
    if tree[0] == "int":
        return ("int", tree[1] + rng.choice([1, 1, 2]))
    if tree[0] == "var":
        return ("var", rng.choice(LETTERS))
    if tree[0] == "pow":
        return ("pow", tree[1], tree[2] + 1)
    if tree[0] == "fn":
        return ("fn", rng.choice(["sin", "cos", "ln"]), tree[2])
    if tree[0] == "neg":
        return tree[1]
    return ("neg", tree)


def _two(rng: random.Random, depth: int, letters: str) -> tuple[tuple, tuple]:
    tree = _tree(rng, depth, letters)
    return tree, (tree if rng.random() < 0.5 else _changed(tree, rng))


# -- whole answers


def _expressions(rng: random.Random) -> tuple[str, str]:
    letters = rng.choice(["", "x", "x", "xy", rng.choice(LETTERS)])
    gold, said = _two(rng, rng.choice([1, 1, 2, 2, 3]), letters)
    return _spell(gold, rng), _spell(said, rng)


def _functions(rng: random.Random) -> tuple[str, str]:
    gold, said = _two(rng, rng.choice([1, 2]), "x")
    lead = rng.choice(["y={}", "y = {}", "S={}"])
    answer = lead.format(_spell(said, rng)) if rng.random() < 0.7 else _spell(said, rng)
    return lead.format(_spell(gold, rng)), answer


def _polynomials(rng: random.Random) -> tuple[str, str]:
    """A product of linear factors, and its expansion."""
    a, b, c = rng.randint(1, 9), rng.randint(-9, 9), rng.randint(-9, 9)
    wide, narrow = b + c * a, b * c + rng.choice([0, 0, 1])
    expanded = f"{a}x^2{wide:+d}x{narrow:+d}".replace("1x", "x", 1)
    factored = f"({a}x{b:+d})(x{c:+d})".replace("(1x", "(x")
    return rng.choice([(expanded, factored), (factored, expanded)])


def _numbers(rng: random.Random) -> tuple[str, str]:
    n, d = rng.randint(1, 30), rng.randint(2, 12)
    value = n / d
    spelled = [f"\\frac{{{n}}}{{{d}}}", f"{n}/{d}", f"{value:g}", f"{round(value, 2):g}"]
    spelled += [f"\\frac{{{2 * n}}}{{{2 * d}}}", f"{n // d}\\frac{{{n % d or 1}}}{{{d}}}"]
    spelled += [f"\\frac{{{n + 1}}}{{{d}}}", f"-\\frac{{{n}}}{{{d}}}", f"\\frac{{-{n}}}{{-{d}}}"]
    return rng.choice(spelled), rng.choice(spelled)


def _radicals(rng: random.Random) -> tuple[str, str]:
    a, b = rng.randint(1, 9), rng.choice([2, 3, 5, 6, 7, 8, 12])
    spelled = [f"{a}\\sqrt{{{b}}}", f"\\sqrt{{{a * a * b}}}", f"\\frac{{{a * b}}}{{\\sqrt{{{b}}}}}"]
    spelled += [f"{a}\\sqrt{{{b + 1}}}", f"\\sqrt{{{b}}}\\cdot {a}", f"{a * b**0.5:.6f}"]
    spelled += [f"\\frac{{{a}\\sqrt{{{b * 9}}}}}{{3}}", f"{a} \\cdot {b}^{{\\frac{{1}}{{2}}}}"]
    return rng.choice(spelled), rng.choice(spelled)


def _equations(rng: random.Random) -> tuple[str, str]:
    a, b, c = rng.randint(1, 5), rng.randint(1, 5), rng.randint(-6, 6)
    d = c + rng.choice([0, 0, 1])
    spelled = [f"{a}x+{b}y={c}", f"{b}y={d}-{a}x", f"{a}x+{b}y-{c}=0".replace("--", "+")]
    spelled += [f"{2 * a}x+{2 * b}y={2 * d}", f"y=\\frac{{{d}-{a}x}}{{{b}}}", f"{a}x={c}-{b}y"]
    return rng.choice(spelled), rng.choice(spelled)


def _conics(rng: random.Random) -> tuple[str, str]:
    r, h = rng.randint(1, 6), rng.randint(1, 4)
    spelled = [f"x^2+y^2={r * r}", f"y^2+x^{{2}}={r}^2", f"(x-{h})^2+y^2={r * r}"]
    spelled += [
        f"x^2-{2 * h}x+{h * h}+y^2={r * r}",
        f"\\frac{{x^2}}{{{r * r}}}+\\frac{{y^2}}{{4}}=1",
    ]
    return rng.choice(spelled), rng.choice(spelled)


def _assignments(rng: random.Random) -> tuple[str, str]:
    n = rng.randint(1, 9)
    spelled = [f"x={n}", f"{n}", f"x = \\frac{{{2 * n}}}{{2}}", f"{n}=x", f"y={n}", f"x={n + 1}"]
    return rng.choice(spelled), rng.choice(spelled)


def _inequalities(rng: random.Random) -> tuple[str, str]:
    n, sign = rng.randint(1, 6), rng.choice(["<", ">", "\\le", "\\geq ", "\\leq "])
    spelled = [f"x{sign} {n}", f"x<{n}", f"{n}>x", f"x\\ge {n}", f"{n} \\le x", f"2x<{2 * n}"]
    spelled += [f"x<{n + 1}", f"-x>-{n}", f"x-{n}<0"]
    return rng.choice(spelled), rng.choice(spelled)


def _ranges(rng: random.Random) -> tuple[str, str]:
    a, b = rng.randint(-5, 5), rng.randint(-5, 9)
    spelled = [f"{a}<x<{b}", f"{a} \\le x<{b}", f"{b}>x>{a}", f"{a}<x \\leq {b}", f"{a}<x<{b + 1}"]
    return rng.choice(spelled), rng.choice(spelled)


def _intervals(rng: random.Random) -> tuple[str, str]:
    a, b = (
        rng.choice(["-\\infty", "-3", "0", "1", "\\frac{1}{2}"]),
        rng.choice(["2", "5", "\\infty"]),
    )
    opening, closing = rng.choice("(["), rng.choice(")]")
    spelled = [f"{opening}{a},{b}{closing}", f"({a},{b})", f"\\left({a}, {b}\\right{closing}"]
    spelled += [f"[{a}, {b})", f"({b},{a})", f"{opening}{a},{rng.choice('259')}{closing}"]
    return rng.choice(spelled), rng.choice(spelled)


def _points(rng: random.Random) -> tuple[str, str]:
    size = rng.choice([2, 2, 3])
    numbers = [rng.randint(-9, 9) for _ in range(size)]
    other = [n + rng.choice([0, 0, 0, 1]) for n in numbers]
    halves = ",".join(f"\\frac{{{2 * n}}}{{2}}" for n in other)
    spelled = ["(" + ",".join(map(str, numbers)) + ")", "(" + ", ".join(map(str, other)) + ")"]
    spelled += [f"\\left({halves}\\right)", "[" + ",".join(map(str, numbers)) + "]"]
    return rng.choice(spelled), rng.choice(spelled)


def _sets(rng: random.Random) -> tuple[str, str]:
    numbers = rng.sample(range(-9, 10), rng.choice([2, 3]))
    other = [*numbers[1:], numbers[0] + rng.choice([0, 0, 1])]
    lists = [", ".join(map(str, row)) for row in (numbers, other, numbers[:-1])]
    spelled = [f"\\{{{row}\\}}" for row in lists] + lists[:2]
    spelled += ["\\left\\{" + lists[1] + "\\right\\}"]
    return rng.choice(spelled), rng.choice(spelled)


def _matrices(rng: random.Random) -> tuple[str, str]:
    entries = [rng.randint(0, 9) for _ in range(4)]
    other = [n + rng.choice([0, 0, 0, 0, 1]) for n in entries]
    spelled = [
        "\\begin{{{0}}}{1}&{2}\\\\{3}&{4}\\end{{{0}}}".format(
            rng.choice(["pmatrix", "bmatrix"]), *row
        )
        for row in (entries, other)
    ]
    spelled.append("\\begin{{pmatrix}}{}\\\\{}\\end{{pmatrix}}".format(*entries[:2]))
    return rng.choice(spelled), rng.choice(spelled)


def _exponentials(rng: random.Random) -> tuple[str, str]:
    a, b = rng.choice([2, 3, 4, 10]), rng.randint(1, 4)
    spelled = [f"{a}^{{x+{b}}}", f"{a**b}\\cdot {a}^x", f"{a}^{{{b}}}\\cdot {a}^{{x}}"]
    spelled += [
        f"e^{{{b}x}}",
        f"(e^x)^{b}",
        f"{a}^{{{b}x}}",
        f"{a**b}^x",
        f"\\frac{{1}}{{e^{{-{b}x}}}}",
    ]
    return rng.choice(spelled), rng.choice(spelled)


def _logarithms(rng: random.Random) -> tuple[str, str]:
    a, b = rng.choice([2, 3, 5]), rng.randint(1, 3)
    spelled = [f"\\log_{a}(x)+{b}", f"{b}+\\log_{{{a}}} x", f"\\log_{a}{{{a**b}}}", f"{b}"]
    spelled += [f"\\frac{{\\ln x}}{{\\ln {a}}}+{b}", f"\\log_{a + 1}(x)+{b}", f"\\ln(x+{b})"]
    return rng.choice(spelled), rng.choice(spelled)


def _waves(rng: random.Random) -> tuple[str, str]:
    a, b, c = rng.randint(1, 5), rng.choice(["2", "3", "\\frac{1}{2}", "\\pi"]), rng.randint(1, 4)
    name = rng.choice(["sin", "cos", "tan"])
    spelled = [f"y={a}\\{name}({b}x)+{c}", f"y={c}+{a}\\{name}\\left({b}x\\right)"]
    spelled += [f"{a}\\{name}({b}x)+{c}", f"y={a}\\{name} {b}x+{c}", f"y={a}\\cos({b}x)+{c}"]
    spelled += [f"y={a}\\sin({b}x-{c})", f"y=-{a}\\sin({c}-{b}x)"]
    return rng.choice(spelled), rng.choice(spelled)


def _measures(rng: random.Random) -> tuple[str, str]:
    r, h = rng.randint(1, 9), rng.randint(1, 9)
    spelled = [
        f"{r * r * h}\\pi",
        f"\\pi\\cdot {r}^2\\cdot {h}",
        f"\\frac{{{3 * r * r * h}\\pi}}{{3}}",
    ]
    spelled += [
        f"{r * r * h + 1}\\pi",
        f"{r}\\pi",
        "\\pi r^2 h",
        "2\\pi r",
        "2\\pi rh",
        f"{r}^{{\\circ}}",
    ]
    return rng.choice(spelled), rng.choice(spelled)


_SHAPES: list[Callable[[random.Random], tuple[str, str]]] = [
    *[_expressions] * 6,
    *[_functions] * 2,
    _polynomials, _numbers, _radicals, _equations, _conics, _assignments, _inequalities, _ranges,
    _intervals, _points, _sets, _matrices, _exponentials, _logarithms, _waves, _measures,
]  # fmt: skip
