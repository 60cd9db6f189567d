"""The built-in list of queries that a collection of pictures most likely has no answer to.

How good the best hit of such a query looks, index by index, is what a hit has to beat to mean
anything (`indexer.search.relevance`). Three kinds, in the languages people search in: keyboard
noise, random word salad, and phrases about what cannot be photographed. Things that can be
photographed are left out: any of them may be in the collection, and would raise the bar for real
queries.

The list is part of the format: `list_id` names its content, and a background made with another
list is made anew. It knows nothing of encoders or vectors.
"""

from __future__ import annotations

import hashlib
import random
from functools import cache
from typing import Final

_KEYBOARD: Final = ("qwertyuiop", "asdfghjkl", "zxcvbnm", "1234567890", "йцукенгшщзфывапролд")
_SCRIPTS: Final = (
    "的一是不了在有这中大",
    "ㄱㄴㄷㄹㅁㅂㅅㅇㅈㅊ",
    "あいうえおかきくけこ",
    "אבגדהוזחט",
)
_SALAD: Final = (
    "although because hence whereas despite unless until moreover neither either whom which "
    "percent policy clause budget average nine fourteen Tuesday reason theory duty amount "
    "quickly rarely almost instead mostly further owe imply assume depend refer",
    "虽然 因为 所以 除非 直到 而且 百分比 政策 条款 预算 平均 九 十四 星期二 理由 理论 义务 "
    "数量 很少 几乎 反而 大多 进一步 意味 假设 取决",
    "aunque porque entonces mientras salvo hasta además porcentaje política cláusula presupuesto "
    "promedio nueve catorce martes razón teoría deber cantidad casi suponer depender",
    "obwohl weil deshalb während außer bis zudem Prozentsatz Politik Klausel Haushalt "
    "Durchschnitt neun vierzehn Dienstag Grund Theorie Pflicht Betrag fast annehmen abhängen",
    "quoique parce donc tandis sauf jusque pourcentage politique clause budget moyenne neuf "
    "quatorze mardi raison théorie devoir montant presque supposer dépendre",
    "хотя потому поэтому пока кроме процент политика пункт бюджет среднее девять вторник "
    "причина теория долг количество почти предполагать зависеть",
    "しかし だから 一方 除いて まで さらに 割合 政策 条項 予算 平均 九つ 火曜日 理由 理論 義務 "
    "数量 ほとんど 仮定 依存",
)
_ABSTRACT: Final = (
    # English
    "annual budget deficit",
    "the definition of truth",
    "a proof by contradiction",
    "privacy policy update",
    "interest rate decision",
    "the theory of relativity",
    "data retention requirements",
    "a question of responsibility",
    "average monthly rainfall",
    "subject and predicate",
    "the passive voice",
    "customer satisfaction survey results",
    "the cause of the delay",
    "compound interest",
    "human rights treaty",
    "unit test coverage",
    "the limits of knowledge",
    "a legal precedent",
    "expected value",
    "free trade agreement",
    "the etymology of a word",
    "stock market volatility",
    "a change of opinion",
    "two factor authentication",
    "standard deviation",
    "an unwritten rule",
    "the burden of proof",
    "frequently asked questions",
    "insurance premium",
    "the end of the sentence",
    "version control",
    "a promise that was not kept",
    "public opinion",
    "import duty on services",
    "the second conditional",
    "thermodynamic equilibrium",
    "a rumour",
    "loyalty",
    "patience",
    "gratitude",
    "irony",
    "wisdom",
    "forgiveness",
    "ambition",
    "the number seven hundred and three",
    "how do I cancel my subscription",
    "what time is it in another country",
    "why is the answer wrong",
    "error code four hundred and four",
    "invoice number and due date",
    "meeting minutes from last week",
    "a cubic polynomial",
    "imaginary numbers",
    "gravitational constant",
    "chemical valency",
    "binary search",
    "machine translation",
    "the silence after the question",
    "an abstract idea",
    "nothing at all",
    "something that does not exist",
    "a colour nobody has seen",
    "the day before yesterday",
    "next year's plan",
    "once upon a time",
    # Chinese
    "年度预算赤字",
    "真理的定义",
    "反证法",
    "隐私政策更新",
    "利率决定",
    "相对论",
    "责任问题",
    "被动语态",
    "客户满意度调查",
    "复利",
    "人权条约",
    "期望值",
    "自由贸易协定",
    "词源",
    "标准差",
    "举证责任",
    "常见问题",
    "保险费",
    "公众舆论",
    "热力学平衡",
    "忠诚",
    "耐心",
    "讽刺",
    "智慧",
    "野心",
    "如何取消订阅",
    "虚数",
    "机器翻译",
    "一个抽象的概念",
    "不存在的东西",
    # Spanish, German, French, Italian, Portuguese, Russian, Japanese, Korean, Arabic, Turkish
    "el déficit presupuestario",
    "la definición de la verdad",
    "política de privacidad",
    "la carga de la prueba",
    "la paciencia",
    "una idea abstracta",
    "das Haushaltsdefizit",
    "die Definition der Wahrheit",
    "Datenschutzerklärung",
    "die Beweislast",
    "Geduld",
    "eine abstrakte Idee",
    "le déficit budgétaire",
    "la définition de la vérité",
    "politique de confidentialité",
    "la charge de la preuve",
    "la patience",
    "une idée abstraite",
    "la definizione di verità",
    "il tasso di cambio",
    "a definição de verdade",
    "taxa de juros",
    "определение истины",
    "бюджетный дефицит",
    "терпение",
    "真実の定義",
    "財政赤字",
    "忍耐",
    "진리의 정의",
    "예산 적자",
    "تعريف الحقيقة",
    "عجز الميزانية",
    "gerçeğin tanımı",
    "bütçe açığı",
)
_NOISE_COUNT: Final = 72
_SALAD_COUNT: Final = 112


@cache
def background_queries() -> tuple[str, ...]:
    """Every query, always the same ones in the same order."""
    rng = random.Random(703)  # noqa: S311  the same list everywhere is the point
    return (*_ABSTRACT, *_noise(rng), *_salad(rng))


@cache
def list_id() -> str:
    """sha256 (hex) of the list."""
    return hashlib.sha256("\n".join(background_queries()).encode()).hexdigest()


def _noise(rng: random.Random) -> list[str]:
    alphabets = (*_KEYBOARD, *_SCRIPTS, "".join(_KEYBOARD[:3]), "aeioubdkprstlm")
    found = []
    for number in range(_NOISE_COUNT):
        letters = alphabets[number % len(alphabets)]
        words = [
            "".join(rng.choice(letters) for _ in range(rng.randint(3, 9)))
            for _ in range(rng.randint(1, 4))
        ]
        found.append(" ".join(words))
    return found


def _salad(rng: random.Random) -> list[str]:
    found = []
    for number in range(_SALAD_COUNT):
        # half of them English: the languages' share in what people type
        words = _SALAD[0 if number % 2 else number // 2 % len(_SALAD)].split()
        found.append(" ".join(rng.choice(words) for _ in range(rng.randint(3, 8))))
    return found
