"""For any value: a number, a letter, an expression, a box."""

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

# Said, but not meant, or not it alone.
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
