r"""Units after a value: which words are units, and what they are in dimension and scale (pint).

A unit must be set apart as one: ``18 m``, ``18\text{ m}``, ``18cm``, ``18 m/s``. A single letter
that touches what stands before it (``60t``, ``2\pi r^2h``) is a variable of the formula.
"""

import re
from fractions import Fraction
from functools import lru_cache
from typing import Any, NamedTuple

_SPELLINGS = """
meter: m metre metres meters 米 公尺 centimeter: cm cms centimetre centimetres centimeters
厘米 公分 millimeter: mm millimetre millimetres millimeters 毫米 kilometer: km kms kilometre
kilometres kilometers 千米 公里 decimeter: dm decimeters 分米 micrometer: µm μm um
micrometers nanometer: nm nanometers inch: in inch inches 英寸 foot: ft foot feet 英尺 yard:
yd yard yards mile: mi mile miles 英里 second: s sec secs second seconds 秒 minute: min mins
minute minutes 分钟 hour: h hr hrs hour hours 小时 day: day days 天 week: week weeks 周 星期
month: month months year: yr year years 年 millisecond: ms milliseconds gram: g gram grams
克 kilogram: kg kgs kilogram kilograms 千克 公斤 milligram: mg milligrams 毫克 metric_ton:
ton tons tonne tonnes 吨 pound: lb lbs pound pounds ounce: oz ounce ounces liter: L l liter
liters litre litres 升 milliliter: mL ml milliliters millilitres 毫升 gallon: gal gallon
gallons newton: N newton newtons 牛 joule: J joule joules 焦耳 kilojoule: kJ watt: W watt
watts 瓦 kilowatt: kW kilowatts pascal: Pa pascals kilopascal: kPa volt: V volt volts 伏
ampere: A amp amps ampere amperes 安 ohm: Ω Ω \\Omega ohm ohms 欧 hertz: Hz hertz 赫兹 coulomb: C
coulombs tesla: T teslas kelvin: K kelvin mole: mol moles mole degree: ° ° degree degrees
deg 度 radian: rad rads radian radians 弧度 percent: % percent pct percentage mile/hour: mph
kilometer/hour: kph kmh dollar: $ USD dollar dollars 美元 yuan: ¥ 元 yuan RMB CNY euro: € euro
euros EUR sterling: £ GBP cent: ¢ cent cents hectare: ha hectare hectares 公顷 acre: acre
acres meter**2: 平方米 centimeter**2: 平方厘米 kilometer**2: 平方公里 平方千米 meter**3:
立方米 centimeter**3: cc 立方厘米 unit: unit units 单位
celsius_mark: degC degrees_Celsius degrees_celsius 摄氏度 ℃ fahrenheit_mark: degF
degrees_Fahrenheit degrees_fahrenheit ℉
"""
"""pint's name of a unit, then how people write it."""


def _names() -> dict[str, str]:
    names, name = {}, ""
    for token in _SPELLINGS.split():
        if token.endswith(":"):
            name = token[:-1]
        else:
            names[token.replace("_", " ")] = name
    return names


_NAMES = _names()
_OURS = (
    "celsius_mark = [celsius]", "fahrenheit_mark = [fahrenheit]", "dollar = [currency_dollar]",
    "cent = 0.01 dollar", "yuan = [currency_yuan]",
    "euro = [currency_euro]", "sterling = [currency_sterling]", "unit = []",
)  # fmt: skip
_WORD = "|".join(map(re.escape, sorted(_NAMES, key=len, reverse=True)))
_FACTOR = (
    rf"(?:(?P<before>square|sq\.?|cubic)\s+)?(?P<name>{_WORD})(?![A-Za-z])"
    r"(?:\s*(?:(?:\^|\*\*)\s*\{?\s*(?P<power>-?[1-4])\s*\}?|(?P<sup>[²³])))?"
    r"(?:\s+(?P<after>squared|cubed)\b)?"
)
_PIECE = re.compile(rf"(?P<by>/|\bper\b|[·*⋅])?\s*{_FACTOR}")
_ANY = re.sub(r"\?P<\w+>", "?:", _FACTOR)
_PER = rf"\s+(?:{_WORD})(?![A-Za-z])\s*\^\s*\{{?\s*-\s*[1-4]\s*\}}?"  # m s^{{-1}}
UNIT = re.compile(rf"{_ANY}(?:\s*(?:/|\bper\b|[·*⋅])\s*{_ANY}|{_PER}){{0,3}}")
_WORDS_FOR = {"square": 2, "sq": 2, "squared": 2, "²": 2, "cubic": 3, "cubed": 3, "³": 3}


class Unit(NamedTuple):
    """A unit as dimension and scale to base units."""

    dimension: str
    scale: Fraction
    is_angle: bool = False
    is_percent: bool = False


@lru_cache(maxsize=1)
def _registry() -> Any:
    # Imported here: most answers have no unit, and pint takes half a second.
    import pint

    registry: Any = pint.UnitRegistry(cache_folder=None)
    for line in _OURS:
        registry.define(line)
    return registry


@lru_cache(maxsize=4096)
def read_unit(text: str) -> Unit | None:
    """The unit that a text is; None where it is none.

    Only single names go to pint, so that no expression of a model is evaluated.
    """
    text = text.strip().rstrip(".")
    if not UNIT.fullmatch(text):
        return None
    registry: Any = _registry()
    quantity = registry.Quantity(1.0)
    names, above = [], True
    for match in _PIECE.finditer(text):
        above = above and match["by"] not in ("/", "per")
        power = int(match["power"] or 1)
        for key in ("before", "sup", "after"):
            power *= _WORDS_FOR.get((match[key] or "").rstrip("."), 1)
        name = _NAMES[match["name"]]
        names.append(name)
        quantity = quantity * registry.Quantity(1.0, name) ** (power if above else -power)
    base = quantity.to_base_units()
    scale = Fraction(repr(float(base.magnitude))).limit_denominator(10**15)
    if names == ["percent"]:
        return Unit("", Fraction(1, 100), is_percent=True)
    angle = names in (["degree"], ["radian"])
    return Unit("angle" if angle else str(quantity.dimensionality), scale, angle)
