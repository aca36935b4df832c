"""LaTeX and calculator spelling as tokens: one name for each thing, whatever way it is written."""

import re


class Unreadable(Exception):
    """The text is not the mathematics that is read here."""


_FUNCTION_NAMES = (
    "sin cos tan cot sec csc arcsin arccos arctan sinh cosh tanh exp ln log lg sqrt abs gcd lcm "
    "max min"
)
FUNCTIONS = frozenset(_FUNCTION_NAMES.split())
_ALIASES = {"cbrt": "∛", "asin": "arcsin", "acos": "arccos", "atan": "arctan", "tg": "tan"}
_GREEK_NAMES = (
    "alpha beta gamma delta epsilon varepsilon theta vartheta lambda mu rho sigma tau phi varphi "
    "omega Omega Delta Gamma Theta Lambda Sigma Phi Psi psi chi eta zeta kappa nu xi ell hbar"
)
GREEK = frozenset(_GREEK_NAMES.split())
_UNICODE = {
    "×": "*", "·": "*", "⋅": "*", "∗": "*", "÷": "/", "π": " pi ", "∞": " infty ", "√": " sqrt ",
    "≤": "<=", "≥": ">=", "≠": "!=", "⟨": "(", "⟩": ")",
    "θ": " theta ", "α": " alpha ", "β": " beta ", "∪": " cup ",
    "∈": " in ", "±": " pm ", "½": "(1/2)",
    "¼": "(1/4)", "¾": "(3/4)", "⅓": "(1/3)", "⅔": "(2/3)", "∠": "\\angle ", "△": "\\triangle ",
    "λ": " lambda ", "ω": " omega ", "φ": " phi ", "**": "^", "₁": "_1", "₂": "_2", "₃": "_3",
    "₀": "_0", "\\lt": "<", "\\gt": ">", "\\{": " lbrace ", "\\}": " rbrace ", "μ": " mu ",
}  # fmt: skip
_RENAMED = {
    "leq": "<=", "le": "<=", "leqslant": "<=", "geq": ">=", "ge": ">=", "geqslant": ">=",
    "neq": "!=", "ne": "!=", "cdot": "*", "times": "*", "ast": "*", "div": "/", "infinity": "infty",
    "inf": "infty", "dfrac": "frac", "tfrac": "frac", "cfrac": "frac", "lvert": "|", "rvert": "|",
    "vert": "|", "mid": "|", "colon": ":", "lbrack": "[", "rbrack": "]", "prime": "'",
    "dbinom": "binom", "tbinom": "binom", "union": "cup", "bigcup": "cup",
    "measuredangle": "angle", "langle": "(", "rangle": ")",
}  # fmt: skip
_DROPPED_NAMES = "left right big Big bigl bigr displaystyle limits quad qquad , ; : !"
_DROPPED = frozenset(_DROPPED_NAMES.split())
WORDS = sorted(
    {*FUNCTIONS, *_ALIASES, "pi", "theta", "alpha", "beta", "infty", "infinity", "phi", "lambda",
     "omega", "cup", "pm", "in", "lbrace", "rbrace", "frac", "mu"},
    key=len, reverse=True,
)  # fmt: skip
_TOKEN = re.compile(
    r"\s+|(?P<number>(?:\d{1,3}(?:,\d{3})+(?![\d,])|\d+)(?:\.\d+)?(?:[eE][+-]?\d{1,4}(?![A-Za-z\d]))?"
    r"|\.\d+)|\\(?P<command>pi(?=[a-z](?![A-Za-z]))|[A-Za-z]+|.)"
    rf"|(?P<word>{'|'.join(WORDS)})|(?P<other><=|>=|!=|[A-Za-z]|.)",
    re.DOTALL,
)
_RAISED = re.compile("[⁰¹²³⁴-⁹⁺⁻ⁿ]+")
_LOWERED = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻ⁿ", "0123456789+-n")
_UNION = re.compile(r"(?<=[)\]])\s*U\s*(?=[(\[])")
_OVER = re.compile(r"\{([^{}]*)\\over(?![A-Za-z])([^{}]*)\}")
_RECURRING = re.compile(
    r"(\d*)\.(\d*)(?:\\(?:overline|bar)\s*\{?(\d{1,12})\}?|\\dot\s*\{?(\d)\}?(?:\d*\\dot\s*\{?\d\}?)?)"
)
_PRIMES = re.compile(r"\^\s*\{?((?:\s*(?:\\prime|'))+)\s*\}?")
_SYSTEM = re.compile(  # equations under one brace are a list of them
    r"(?:\\\{\s*\\begin\{(array|aligned)\}(?:\{[lcr]*\})?|\\begin\{cases\})(.*?)"
    r"\\end\{(?:array|aligned|cases)\}\s*\.?",
    re.DOTALL,
)
_OPERATOR = re.compile(r"\\(?:operatorname\*?|mathrm|text|mathit|rm)\s*\{\s*([A-Za-z]+)\s*\}")
_THOUSANDS_LIST = re.compile(r"(?:[(\[{]|lbrace)\s*\d{1,3}(?:,\d{3})+\s*(?:[)\]}]|rbrace)")

BEYOND = re.compile(
    r"\\(?:int|iint|oint|sum|prod|lim|begin|partial|nabla|cap|setminus|emptyset|varnothing|mathbb"
    r"|lfloor|lceil|pmod|bmod|mod|equiv|forall|exists|ldots|cdots|dots|land|lor|neg|subset|notin)(?![A-Za-z])"
    r"|∫|∑|ℝ|ℤ|∅|⌊|⌈"
)
"""Commands that are mathematics beyond what is read here; without one, the rest is no answer."""


def spelled_out(text: str) -> str:
    """Text in ASCII, with recurring decimals as fractions and operators by their names.

    Raises:
        Unreadable: a recurring decimal of an unknown form.
    """
    text = _SYSTEM.sub(lambda match: re.sub(r"\\\\|&", ",", match[2].strip("\\ ")), text)
    text = _RAISED.sub(lambda match: f"^{{{match[0].translate(_LOWERED)}}}", text)
    text = _UNION.sub(r" cup ", text)
    text = _OVER.sub(r"\\frac{\1}{\2}", text)
    for symbol, spelling in _UNICODE.items():
        text = text.replace(symbol, spelling)
    if "^" in text:
        text = _PRIMES.sub(lambda match: "'" * len(re.findall("prime|'", match[1])), text)
    if "." in text:
        text = _RECURRING.sub(_recurring, text)
    text = _OPERATOR.sub(lambda m: f" {m[1]} " if m[1] in (*FUNCTIONS, "e", "i") else m[0], text)
    return re.sub(r"(?<![A-Za-z\\])m\s*(?=\\(?:measured)?angle)", "", text)


def tokens_of(text: str) -> list[str]:
    """Tokens: numbers, letters, signs, names of functions and constants, other commands."""
    bracketed = _THOUSANDS_LIST.search(text)
    tokens: list[str] = []
    for match in _TOKEN.finditer(text):
        number = match["number"]
        if number and "," in number and bracketed:
            tokens += [part for piece in number.split(",") for part in (piece, ",")][:-1]
        elif command := match["command"]:
            name = _RENAMED.get(command, command)
            if command not in _DROPPED and name.strip():
                tokens.append(f"\\{name}" if len(name) == 1 and name.isalpha() else name)
        elif token := number or match["word"] or match["other"]:
            token = _ALIASES.get(token, _RENAMED.get(token, token))
            tokens.append(token.replace(",", "") if number else token)
    return tokens


def _recurring(match: re.Match[str]) -> str:
    whole, fixed, block = match[1] or "0", match[2], match[3] or match[4]
    if match[4] and fixed:  # the dots stand over the first and the last digit
        raise Unreadable
    nines, zeros = "9" * len(block), "0" * len(fixed)
    over = int(whole + fixed + block) - int(whole + fixed)
    return rf"(\frac{{{over}}}{{{nines + zeros}}})"
