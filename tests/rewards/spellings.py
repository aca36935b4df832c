"""How people and models write answers, committed and not; knows nothing of the parser.

``{v}`` stands for a spelling of the gold, ``{o}`` for one of another value. Written from answers of
vision-language models, public bug reports of graders and ordinary English and Chinese.
"""

# For any value: a number, a letter, an expression, a box.
COMMITTED = """
Definitely {v}.
Certainly {v}
I believe {v}
I think {v}
{v}, I think
{v}. Explanation: the two parts are equal.
{v} (see figure)
{v} ✓
✔ {v}
{v}
{v}.
  {v}
The answer is {v}
The answer is {v}.
The answer is: {v}
The final answer is {v}.
The correct answer is {v}.
Answer: {v}
ANSWER: {v}
Final answer: {v}
Final Answer - {v}
So the answer is {v}.
So, the answer is {v}.
Thus, the answer is {v}.
Therefore, the answer is {v}.
Hence the answer is {v}
Therefore the correct answer is {v}
I think the answer is {v}
I think it is {v}.
I believe the answer is {v}.
It is {v}.
It's {v}
My answer is {v}.
Our answer: {v}
Result: {v}
The result is {v}.
We get {v}.
So {v}
So, {v}.
Thus {v}.
So it is {v}
**{v}**
**Answer:** {v}
**Answer: {v}**
$\\boxed{{{v}}}$
\\boxed{{{v}}}
The answer is \\boxed{{{v}}}.
Therefore, the answer is $\\boxed{{{v}}}$.
`{v}`
"{v}"
{v}, because the figure says so.
{v} because of the figure
{v}, since the two parts are equal.
The answer is {v} because the triangle is isosceles.
The answer is {v}, as shown in the figure.
Looking at the figure, the answer is {v}.
From the picture we see that the answer is {v}
After checking every part of the image, the answer is {v}.
答案：{v}
答案是{v}
答案是 {v}。
答案为{v}
答：{v}
所以答案是{v}。
因此，答案是{v}。
故答案为：{v}
正确答案是{v}。
最终答案：{v}
我认为答案是{v}
{v}。
{v}，因为图中如此
"""

# For any value: said, but not meant, or not it alone.
UNCOMMITTED = """
not {v}
Not {v}.
It is not {v}
It is not {v}.
The answer is not {v}
The answer isn't {v}.
The answer is definitely not {v}
The answer can't be {v}
The answer cannot be {v}.
The answer could not be {v}
It is certainly not {v}
It is never {v}
anything but {v}
Anything except {v}
other than {v}
something other than {v}
everything except {v}
{v} is wrong
{v} is not correct
{v} is incorrect.
{v} is false
{v} is not the answer
{v}? No.
{v}?
Is it {v}?
maybe {v}
Maybe {v}.
perhaps {v}
possibly {v}
It might be {v}
It could be {v}.
It may be {v}
I guess {v}?
I am not sure, {v}
Not sure but {v}
{v}, but I am not sure
{v} or {o}
{o} or {v}
either {v} or {o}
{v} or maybe {o}
{v}, maybe {o}
maybe {o}, maybe {v}
The answer is {v} or {o}.
The answer is either {v} or {o}
{v}, {o}
{v} / {o}
{v}; {o}
{v} and {o}
both {v} and {o}
{v} {o}
{o} {v}
$\\boxed{{{v}}}$ $\\boxed{{{o}}}$
\\boxed{{{o}}} or \\boxed{{{v}}}
{v}. Wait, {o}
{v}, wait, no, {o}
{v}... actually {o}
{v}. Actually, {o}.
{v} - no, {o}
{v}. No, it is {o}
{v}. Sorry, {o}.
{v}. Correction: {o}
{v}. On second thought, {o}
{v} ... actually, ANSWER: {o}
The answer is {v}. Wait, the answer is {o}.
The answer is {v}. The answer is {o}.
Answer: {v}. Answer: {o}
First I thought {v}, but it is {o}
{v} was my first thought, but {o} is right
{o}, not {v}
{o} rather than {v}
{o} instead of {v}
I rule out {v}
neither {v} nor {o}
不是{v}
不是 {v}。
答案不是{v}
并非{v}
除了{v}
可能是{v}
也许{v}
{v}或{o}
{v}还是{o}
{v}或者{o}
{v}，不对，{o}
{v}，等等，{o}
{v}，其实是{o}
要么{v}要么{o}
"""

# For numbers.
NUMBER_COMMITTED = """
That makes {v}
which is {v}
In total {v}
The final count is {v}
leaving {v}
adding up to {v}
{v} is correct
{v} is the final answer
共计{v}
合计{v}
总数是{v}
答案应该是{v}
= {v}
x = {v}
≈ {v}
about {v}
approximately {v}
exactly {v}
The value is {v}.
The value of x is {v}
The total is {v}
Total: {v}
The total number is {v}.
The answer equals {v}
which gives {v}
We obtain {v}
This gives {v}.
大约{v}
等于{v}
约为{v}
共{v}
总共{v}
结果是{v}
"""

NUMBER_UNCOMMITTED = """
less than or equal to {v}
greater than or equal to {v}
≤ {v}
≥{v}
> {v}
< {v}
!= {v}
≠{v}
just under {v}
a little over {v}
almost {v}
{v} in base 8
{v} parts per million
{v} hundredths
{v} is the upper bound
{v} as a maximum
capped at {v}
the reciprocal of {v}
the opposite of {v}
{v} negative
10^{v}
{v}i
{v} divided by 2
{v} multiplied by 2
{v} subtracted from 200
a quarter of {v}
三倍的{v}
{v}的一半
{v}减1
比{v}大
不等于{v}
{v}以内
at least {v}
At most {v}.
no more than {v}
not more than {v}
more than {v}
less than {v}
fewer than {v}
greater than {v}
over {v}
under {v}
above {v}
below {v}
up to {v}
It is at least {v}
The answer is at most {v}
The answer is more than {v}.
{v} or more
{v} or less
{v} or so
{v} at most
{v} at least
{v} or fewer
{v}+
{v} and up
a maximum of {v}
between {v} and {o}
between {o} and {v}
from {v} to {o}
{v} to {o}
{v}-{o}
{v} - {o}
{v} + {o}
{v} million
{v} billion
{v} thousand
{v} hundred
{v} dozen
{v} percent of 90
half of {v}
a third of {v}
one half of {v}
twice {v}
double {v}
triple {v}
two times {v}
{v} times 3
{v} squared
{v} cubed
{v} factorial
the square of {v}
the square root of {v}
the cube root of {v}
\\sqrt{{{v}}}
minus {v}
negative {v}
-{v}
−{v}
one over {v}
1 over {v}
1/{v}
{v}/7
{v}^2
{v}²
{v}!
{v} and a half
{v} plus one
{v} minus 1
{v} out of {o}
{v}.5
{v}e3
{v}00
0.{v}
{v} more than {o}
{v} less than {o}
10 minus {v}
ten times {v}
± {v}
plus or minus {v}
\\pm {v}
{o} = {v} = {o}
if {o} then {v}, else {o}
至少{v}
至多{v}
不超过{v}
大于{v}
小于{v}
超过{v}
少于{v}
{v}以上
{v}以下
{v}万
{v}亿
{v}倍
{v}分之一
{v}的平方
一半的{v}
负{v}
"""

COUNT_COMMITTED = """
There're {v}.
{v} cubes
There are {v} cubes.
There are {v} of them.
There are {v}.
I count {v}
I count {v} red balls.
I can see {v} objects in the image.
{v} objects are left.
{v} items remain
The image shows {v} spheres
There are exactly {v} metallic things.
There are a total of {v} blocks.
The number of cubes is {v}
Number of objects: {v}
Count: {v}
We have {v} left.
After removing the red ones, {v} remain.
{v} in the second row
{v}个
有{v}个
共有{v}个
一共有{v}个
图中有{v}个立方体
图中共有{v}个物体。
还剩{v}个
剩下{v}个。
There are ${v}$ cubes
"""

COUNT_UNCOMMITTED = """
There are not {v} cubes
There aren't {v}.
{v} red and {o} blue
{v} cubes and {o} spheres
{o} cubes, {v} spheres
{v}th
the {v}th
{v}x
x{v}
{v}%
{v} pairs
几个，{v}或{o}个
没有{v}个
不止{v}个
{v}个以上
{v}个或{o}个
"""

MATH_COMMITTED = """
$\\underline{{{v}}}$
x := {v}
{v} = {v}
$ {v} $
$${v}$$
\\({v}\\)
\\[{v}\\]
$x = {v}$
The value of $x$ is {v}.
The value of $x$ is ${v}$.
The answer is ${v}$.
The area is {v}
area = {v}
$\\text{{Area}} = {v}$
The length of AB is {v}.
AB = {v}
$AB={v}$
S = {v}
Hence, $x={v}$.
Thus we have x = {v}
so x={v}
{v} cm
{v} m
{v} km/h
${v}$ cm
${v}\\text{{ cm}}$
${v}\\,\\mathrm{{cm}}$
{v} units
{v} square units
{v} students
${v}\\text{{ apples}}$
It is {v} apples
{v}厘米
{v}米
{v}元
面积是{v}
面积为{v}平方厘米
长度为{v}厘米
x的值是{v}
∠ABC = {v}°
The measure of angle P is {v}°.
The measure of ∠P is {v} degrees.
m∠ABC={v}^\\circ
"""

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


def lines(*tables: str) -> list[str]:
    """The rows of some tables."""
    return [row for table in tables for row in table.strip("\n").split("\n") if "{" in row]
