"""Stop words of English and Chinese, and texts without them.

The lists are our own: articles, prepositions, conjunctions, pronouns, auxiliaries and particles. Negations stay in, for
they turn a meaning round ("not good").
"""

from __future__ import annotations

import re
from typing import Literal

Language = Literal["en", "zh"]

_ENGLISH = """
a about above after again against all also am among an and any are as at be because been before being below between
both but by can could did do does doing during each few for from further had has have having he her here hers herself
him himself his how i if in into is it its itself just let me more most must my myself of off on once only or other
ought our ours ourselves out over own same shall she should so some such than that the their theirs them themselves
then there these they this those through to too under until up upon us was we were what when where which while who
whom whose why will with would you your yours yourself yourselves
""".split()  # noqa: SIM905
_CHINESE = "的 了 着 吗 呢 吧 啊 呀 嘛 哦 嗯 和 与 及 或 而 且 之 其 于 在 是 就 也 都 还 又 这 那 个".split()  # noqa: SIM905
# Words that hold one of them and would be broken without it.
_WHOLE = """
目的 的确 的士 了解 了不起 为了 除了 罢了 着急 着火 看着办 和平 和谐 温和 与其 参与 以及 及时 及格 或许 或者
而已 然而 而且 并且 况且 总之 之前 之后 之间 其实 其他 其中 尤其 关于 由于 终于 于是 存在 现在 正在 在线
实在 是否 但是 可是 还是 就业 成就 就是 首都 都市 还款 归还 偿还 还钱 又是 这里 那里 个人 个性 整个 一个
""".split()  # noqa: SIM905
_PATTERNS = {
    # With the blanks before it, so that none are left doubled; an apostrophe makes another word ("it's", "who'll").
    "en": re.compile(rf"\s*(?<![\w'’])(?:{'|'.join(_ENGLISH)})(?![\w'’])", re.IGNORECASE),
    "zh": re.compile(rf"({'|'.join(sorted(_WHOLE, key=len, reverse=True))})|[{''.join(_CHINESE)}]"),
}


def without_stop_words(text: str, language: Language) -> str:
    """Return a text without a language's stop words; unchanged if nothing but stop words is in it."""
    kept = _PATTERNS[language].sub(lambda found: found[1] or "" if language == "zh" else "", text)
    return kept.strip() or text
