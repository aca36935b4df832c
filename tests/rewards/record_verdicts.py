"""Adds generated pairs with Math-Verify's own verdicts to math_verify_verdicts.jsonl.

    python tests/rewards/record_verdicts.py COUNT SEED

Math-Verify takes a second for thirty pairs, which is why the test reads a record.
"""

import json
import random
import signal
import sys
from pathlib import Path

import math_verify

from expression_pairs import pair

RECORD = Path(__file__).with_name("math_verify_verdicts.jsonl")
SECONDS = 5.0


class OutOfTime(BaseException):
    """Not an Exception, so that Math-Verify cannot swallow it."""


def _stop(*_: object) -> None:
    raise OutOfTime


def main() -> None:
    count, seed = int(sys.argv[1]), int(sys.argv[2])
    signal.signal(signal.SIGVTALRM, _stop)
    with RECORD.open("a") as record:
        for index in range(count):
            gold, answer = pair(random.Random(seed * 1_000_003 + index))
            signal.setitimer(signal.ITIMER_VIRTUAL, SECONDS)
            try:
                parsed = [
                    math_verify.parse(
                        f"${text}$", fallback_mode="no_fallback", parsing_timeout=None
                    )
                    for text in (gold, answer)
                ]
                verdict = math_verify.verify(*(p[0] for p in parsed), timeout_seconds=None)
            except (OutOfTime, IndexError):
                continue
            finally:
                signal.setitimer(signal.ITIMER_VIRTUAL, 0)
            record.write(json.dumps([gold, answer, int(verdict)]) + "\n")


if __name__ == "__main__":
    main()
