"""The words of the grammar of commitment, English and Chinese; commitment.py has the rules.

A table is one text of phrases that are separated by bars.
"""

CONNECTORS = (
    "then|finally|is|are|was|were|be|being|equal|equals|equal to|equals to|becomes|gives|give|"
    "giving|makes|make|yields|get|gets|got|getting|obtain|obtains|obtained|count|counted|see|find|found|"
    "have|has|had|contains|contain|shows|show|includes|measures|measure|remain|remains|leaves|"
    "left with|total|totals|totaling|value|number|answer|result|choice|option|letter|selection|"
    "response|solution|choose|chose|pick|select|selected|reads|say|amounts to|comes to|"
    "think|believe|there're|they're|adds up to|add up to|simplifies to|"
    "evaluates to|reduces to|works out to|comes out to|"
    "rounds to|rounded to|down to|there's|it's|that's|goes with|go with|correct|conclude|"
    "conclude that|"
    "ans|adding up to|leaving|for a total of|with a total of|yes|ok|okay|sure"
)
"""What a lead ends with: the value follows."""
CONCLUSIONS = "so|thus|hence|therefore|consequently|overall|altogether|in total"
"""Connectors that draw a conclusion: values may be named before them."""
CLAIMS = "answer|option|choice|result|solution|selection|final"
"""Words that claim a final answer; two claims of different values are none."""
QUALIFIERS = (
    "the|a total of|total of|exactly|precisely|only|just|simply|about|approximately|around|"
    "roughly|approx|nearly equal to|equal to|option|choice|letter|number|value|answer|that|now|"
    "also|clearly|definitely|surely|certainly|obviously|evidently|indeed|therefore|"
    "thus|hence|so|here|option letter|is|be|are|final|"
    "correct|point|points|coordinates|interval|set|pair"
)
"""What may stand between connector and value: nothing here changes it."""
REASONS = (
    "because|since|as the|as we|as it|as they|as shown|as in|as can|"
    "as(?= (?:[\\d$\\\\∠△]|(?-i:[A-Z])))|given|"
    "explanation|reasoning|reason|justification|see|given that|due to|"
    "owing to|for the reason|where"
)
"""Behind these, values explain the one that was said."""
DENIALS = (
    "not|never|neither|nor|cannot|except|excluding|other than|anything but|rather than|"
    "instead of|far from|outside|outside of|no longer|unlikely|impossible|ruled out|rule out|"
    "eliminated|aren't|isn't|without|wasn't|weren't|don't|doesn't|didn't|can't|won't|couldn't|"
    "shouldn't|wouldn't|ain't|hardly|unless|wrong answer|wrong option|incorrect answer|"
    "incorrect option|no way|anything besides|doubt|doubtful|deny"
)
"""Anywhere before a value or after it."""
TAIL_DENIALS = "no|wrong|incorrect|false|untrue|mistaken|excluded|invalid|too high|too low|too much"
"""After a value only: "the wrong one is B" may answer a question."""
HEDGES = (
    "maybe|perhaps|possibly|probably|presumably|might|could|either|may be|may|guess|guessing|"
    "unsure|uncertain|unclear|unknown|hard to tell|hard to say|supposedly|alternatively|both"
)
"""Anywhere."""
TAIL_HEDGES = "or|if|unless|assuming|depending|depends|also|as well|but|although|though|versus|vs"
"""After a value only."""
RETRACTIONS = (
    "wait|sorry|correction|oops|on second thought|scratch that|i mean|let me|hmm|hold on|"
    "recheck|however|reconsider|reconsidering|change my|my mistake|more precisely|changed"
)
"""Anywhere."""
TAIL_RETRACTIONS = "actually|rather|instead|in fact|no|really|should be|would be|better"
"""After a value only."""
BOUNDS = (
    "at least|at most|at the least|at the most|no more than|no less than|no fewer than|"
    "more than|less than|fewer than|greater than|larger than|bigger than|smaller than|"
    "higher than|lower than|up to|upwards|upward|exceeds|exceeding|above|below|beyond|under|"
    "over|minimum|maximum|max|min|or more|or less|or fewer|or so|and up|and above|and more|"
    "more|less|fewer|tops|minus|plus|within|onwards|ish|odd|between|greater|smaller|larger|"
    "higher|lower|short|or higher|or lower|"
    "bound|limit|cap"
)
"""After a value; before it, no connector leads over them."""
SCALES = (
    "hundred|thousand|million|billion|trillion|dozen|dozens|score|pairs|couple|k|percent|"
    "per cent|pct|squared|cubed|factorial|times|multiplied|divided|over|half|halves|third|"
    "thirds|quarter|quarters|fourth|fourths|fifth|fifths|sixth|sixths|seventh|sevenths|eighth|"
    "eighths|ninth|ninths|tenth|tenths|hundredth|hundredths|and a|and one|and two|and three|"
    "point|to the|raised|mod|modulo|out of|percentage|fold|to|through|choose|power|degrees of|"
    "hundreds|thousands|millions|x|nd|rd|th|st|ths|billions|lakh|crore|and|"
    "parts|part|inverse|negative|reciprocal|opposite|thousandth|thousandths|millionths"
)
"""Directly after a value."""
ZH_CONNECTORS = (
    "共计|合计|总计|总数|是|为|等于|约等于|约为|大约是|共有|一共有|总共有|总共|一共|共|有|得|得到|得出|选|选择|"
    "选项|应选|故选|答案|答|结果|所以|因此|因而|故|则|即|可得|求得|看到|数到|剩下|还剩|还有|剩|"
    "填|值|个数|数量|求出"
)
ZH_CONCLUSIONS = "所以|因此|因而|故|则|综上|答案|答|共"
ZH_CLAIMS = "答案|选项|选"
ZH_QUALIFIERS = (
    "点|坐标|区间|约|大约|大概|正好|恰好|刚好|只|就|选项|的|就是|应该是|应为|应该选|数字|字母"
)
ZH_REASONS = "因为|由于|因|理由|由"
ZH_DENIALS = (
    "不是|不等于|不为|不选|不能|不可能|不会|不该|并非|非也|没|未必|除了|排除|否认|绝非|别选"
)
ZH_TAIL_DENIALS = "不(?![同仅含透])|没|未|错|否"
ZH_HEDGES = "可能|也许|不确定|要么|猜|似乎|或许|说不定"
ZH_TAIL_HEDGES = "或|还是|左右|如果|若|以及|既|和[零一二两三四五六七八九十\\d]"
ZH_RETRACTIONS = "更正|抱歉|等等|改为|重新|说错"
ZH_TAIL_RETRACTIONS = "其实|实际上|但|不过|应该是|应为|哦|才对"
ZH_BOUNDS = (
    "至少|至多|最多|最少|大于|小于|多于|少于|超过|以上|以下|以内|(?<!其)余|将近|接近|上下|之间|"
    "多[个只条名]|[个只条名]多|不到"
)
ZH_SCALES = (
    "的一半|万|亿|千|百|十|倍|分之|成(?![立年])|半|折|打|对(?!角)|双|多|余|的平方|的立方|的倍|"
    "平方(?![厘米公分])|次方|乘|除以|加|减|来"
)
