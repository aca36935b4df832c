"""For options, whose text is ``{t}`` and another's ``{p}``, and for boxes."""

MCQ_COMMITTED = """
{v}. As AB = CD, it is {t}
→ {v}
# {v}
{v} ✓
({v})
({v}).
[{v}]
{v})
{v}:
{v}. {t}
{v}: {t}
{v}) {t}
({v}) {t}
{v}, {t}
{v} - {t}
{v} — {t}
{v} ({t})
{v} {t}
**{v}. {t}**
{v}、{t}
（{v}）
（{v}）{t}
Option {v}
Option ({v})
option {v} is correct
Option {v} is correct.
Option {v}: {t}
Choice {v}.
The answer is option {v}
The answer is ({v}).
The correct option is {v}.
The correct choice is ({v}) {t}.
The answer is {v}. {t}
The answer is {v}: {t}
I choose {v}.
I pick {v}
I would choose {v}
I'd go with {v}
Selected: {v}
My choice is {v}
{v} is correct
{v} is the correct answer.
{v} is right.
{v} is the answer
So the correct option is {v}
选{v}
选项{v}
故选{v}
故选：{v}。
应选{v}
答案选{v}
我选{v}
正确选项是{v}
{v}选项
{v}是正确的
{v}正确
{t}
{t}.
The answer is {t}.
It is {t}
"""

MCQ_UNCOMMITTED = """
The answer is {o}=b{v}, c, d
Option {v}|{o} or c: d
{v}, {o}/c and
{v}: {p}
{v}. {p}
({v}) {p}
{v} is excluded
All except {v}
A, B, C, D
ABCD
A or B or C or D
(A) (B) (C) (D)
{t} or {p}
{t}, {p}
Option {v} is wrong
Option {v} is not correct
I eliminate {v}
I would not choose {v}
不选{v}
排除{v}
{v}是错的
{v}错误
{v}和{o}都对
"""

BOX_COMMITTED = """
{{"bbox_2d": {v}, "label": "dog", "sub_label": 3}}
{{"rank": 1, "bbox_2d": {v}}}
The bounding box is {v}.
The object is at {v}
bbox: {v}
{{"bbox_2d": {v}}}
{{"bbox_2d": {v}, "label": "dog"}}
{{"bbox_2d": {v}, "label": "dog (2)"}}
{{"bbox_2d": {v}, "label": "person [1]"}}
[{{"bbox_2d": {v}, "label": "a child's cup"}}]
[{v}]
"""

BOX_UNCOMMITTED = """
at most {v}
more than {v}
outside {v}
half of {v}
{v} {v}
{v} or {v}
[{v}
{v}]
{{"bbox_2d": {v}
"""
