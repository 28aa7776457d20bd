"""A few examples of each task in its published layout, with the traps that real ones hold."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

LONG = "and on " * 400
"""More tokens than the tiny model's context of 512."""

LANGUAGES = {
    "xnli": ("en", "th", "ar"),
    "pawsx": ("en", "fr", "ja"),
    "xwinograd": ("en", "ja", "zh"),
    "xcopa": ("it", "th", "zh"),
    "tydiqa": ("en", "ko"),
    "mtg": ("en", "zh"),
    "wmt20": ("en-de", "de-en", "en-ja", "en-zh"),
}
"""Which ones there are of each task."""

XNLI_COLUMNS = ("language", "gold_label", "sentence1", "sentence2", "promptID")
XNLI = {
    "en": [
        ("entailment", "He sleeps.", "He is not awake."),
        ("neutral", "", "The premise is empty."),
        ("contradiction", 'She said "yes', "She said nothing."),
        ("entailment", LONG, "It goes on."),
    ],
    "th": [("neutral", "ปักกิ่งเป็นเมืองหลวงของประเทศจีน", "เขานอนหลับ"), ("contradiction", "ฝนตก", "ฝนไม่ตก")],
    "ar": [("entailment", "القاهرة عاصمة مصر", "مصر لها عاصمة")],
}
PAWSX = {
    "en": [("0", "The cat sat on the mat .", "The mat sat on the cat ."), ("1", "It rains .", "Rain falls .")],
    "fr": [("1", "Il pleut .", "La pluie tombe .")],
    "ja": [("0", "NS", "NS"), ("1", "猫が好きです。", "私は猫が好き。")],
}
XWINOGRAD = {
    "en": [
        ("The city refused the men a permit because _ feared violence.", "The city", "The men", "1"),
        ("He put snow on the smiley face because _ was wet.", "snow", "the smiley face", "2"),
        ("The answer to _ is 42", "this", "that", 2),
        (f"{LONG} and the dog saw _ run away.", "the cat", "the bird", "1"),
    ],
    "jp": [("市は許可を出さなかった。_ は暴力を恐れた。", "市", "男たち", "1")],
    "zh": [("我把雪放在笑脸上，因为_很湿。", "雪", "笑脸", "1")],
}
XCOPA = {
    "it": [
        ("Il cursore si è mosso.", "L'utente ha cliccato il mouse.", "L'utente ha spostato il mouse.", "cause", 1),
        ("", "Piove.", "Nevica.", "effect", 0),
    ],
    "th": [("ฉันหิว", "ฉันกินข้าว", "ฉันนอน", "effect", 0)],
    "zh": [("我饿了。", "我吃饭了。", "我睡觉了。", "effect", 0)],
}
QUESTIONS = {
    "english": [
        ("Football is played in four quarters.", "How many quarters are there?", ["four", "four quarters", "four"]),
        (f"{LONG} Here it ends.", "What goes on?", ["it"]),
    ],
    "korean": [("서울은 대한민국의 수도이다.", "대한민국의 수도는 어디인가?", ["서울"])],
}
MTG = {
    "tg": ({"document": "timberlake's super bowl show is approaching."}, "joey fatone shuts down rumors"),
    "sg": ({"story": "john ordered ten pizzas."}, "it was too late to cancel."),
    "qg": ({"passage": "a treaty binds themselves.", "answer": "themselves"}, "who is bound?"),
    "sum": ({"document": "a man spoke of his delight."}, "ashley mercer was 22."),
}
NEWS = {
    "ende": [("Oil falls &amp; rises", "Öl fällt &amp; steigt"), ("It rains.", "[1]"), ("He sleeps.", "Er schläft.")],
    "deen": [("Es regnet.", "It rains."), ("Er schläft.", "He sleeps.")],
    "enja": [("It rains.", "雨が降る。"), ("He sleeps.", "彼は眠る。")],
    "enzh": [("It rains.", "下雨了。"), ("He sleeps.", "他睡着了。")],
}


def write_all(folder: Path) -> None:
    """All of them, as the archives of the publishers unpack."""
    rows = [(code, label, one, other, "1") for code, found in XNLI.items() for label, one, other in found]
    for name in ("test", "dev"):
        write_table(folder / f"XNLI-1.0/xnli.{name}.tsv", XNLI_COLUMNS, rows)
    for code, pairs in PAWSX.items():
        columns = ("id", "sentence1", "sentence2", "label")
        numbered = [(str(index), one, other, label) for index, (label, one, other) in enumerate(pairs)]
        write_table(folder / f"x-final/{code}/test_2k.tsv", columns, numbered)
    for code, gaps in XWINOGRAD.items():
        names = ("sentence", "option1", "option2", "answer")
        write_lines(folder / f"xwinograd/test/{code}.jsonl", [dict(zip(names, row, strict=True)) for row in gaps])
    for code, stories in XCOPA.items():
        names = ("premise", "choice1", "choice2", "question", "label")
        write_lines(
            folder / f"xcopa/data/{code}/test.{code}.jsonl", [dict(zip(names, row, strict=True)) for row in stories]
        )
    for name in ("dev", "train"):
        write_squad(folder / f"tydiqa-goldp-v1.1-{name}.json", QUESTIONS)
    for task, (fields, target) in MTG.items():
        for code in ("en", "zh"):
            for split in ("test", "train"):
                rows_ = [{**fields, "target": target}, {**fields, "target": "北京是中国的首都。"}]
                write_lines(folder / f"mtg/{task}/{code}/{split}.jsonl", rows_)
    for pair, segments in NEWS.items():
        write_segments(folder / "sgm", pair, segments)


def write_squad(path: Path, questions: Mapping[str, Sequence[tuple[str, str, list[str]]]]) -> None:
    """Passages with a question and its answers by the English name of the language, as TyDiQA-GoldP has them."""
    paragraphs = [
        {
            "context": context,
            "qas": [
                {
                    "id": f"{language}-{index}-0",
                    "question": question,
                    "answers": [{"text": answer, "answer_start": 0} for answer in answers],
                }
            ],
        }
        for language, found in questions.items()
        for index, (context, question, answers) in enumerate(found)
    ]
    _write(path, json.dumps({"version": "1.1", "data": [{"title": "t", "paragraphs": paragraphs}]}))


def write_segments(folder: Path, pair: str, segments: Sequence[tuple[str, str]]) -> None:
    """WMT20's two files of a pair of languages."""
    for kind, code, side in (("src", pair[:2], 0), ("ref", pair[2:], 1)):
        lines = [f'<seg id="{number}">{row[side]}</seg>' for number, row in enumerate(segments, 1)]
        text = "\n".join(['<srcset setid="newstest2020">', '<doc docid="one">', *lines, "</doc>", "</srcset>", ""])
        _write(folder / f"newstest2020-{pair}-{kind}.{code}.sgm", text)


def write_table(path: Path, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Columns with tabs between them, and their names above."""
    _write(path, "".join("\t".join(row) + "\n" for row in (columns, *rows)))


def write_lines(path: Path, rows: Sequence[object]) -> None:
    """A JSON value a line."""
    _write(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
