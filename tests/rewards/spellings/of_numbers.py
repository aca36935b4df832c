"""For numbers, for numbers that count something, and for expressions."""

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
