"""PolyLM's 18 languages: their names, scripts and words, one sentence in each, and how to ask for a translation."""

from __future__ import annotations

import unicodedata

from modelscope_polylm.errors import DependencyError, InputError, install_command, nearest_name

SENTENCE = "Beijing is the capital of China."
LANGUAGES = {
    "en": "English",
    "zh": "Chinese",
    "ru": "Russian",
    "es": "Spanish",
    "de": "German",
    "fr": "French",
    "it": "Italian",
    "pt": "Portuguese",
    "ja": "Japanese",
    "vi": "Vietnamese",
    "id": "Indonesian",
    "pl": "Polish",
    "nl": "Dutch",
    "ar": "Arabic",
    "tr": "Turkish",
    "th": "Thai",
    "he": "Hebrew",
    "ko": "Korean",
}
"""English name by ISO 639-1 code."""

NATIVE_NAMES = {
    "en": "English",
    "zh": "中文",
    "ru": "Русский",
    "es": "Español",
    "de": "Deutsch",
    "fr": "Français",
    "it": "Italiano",
    "pt": "Português",
    "ja": "日本語",
    "vi": "Tiếng Việt",
    "id": "Bahasa Indonesia",
    "pl": "Polski",
    "nl": "Nederlands",
    "ar": "العربية",
    "tr": "Türkçe",
    "th": "ไทย",
    "he": "עברית",
    "ko": "한국어",
}
"""What each language calls itself, by ISO 639-1 code."""

_NAMES = {
    "en": (
        "English; Chinese; Russian; Spanish; German; French; Italian; Portuguese; Japanese; Vietnamese; "
        "Indonesian; Polish; Dutch; Arabic; Turkish; Thai; Hebrew; Korean"
    ),
    "zh": (
        "英语; 中文; 俄语; 西班牙语; 德语; 法语; 意大利语; 葡萄牙语; 日语; 越南语; 印度尼西亚语; 波兰语; 荷兰语; "
        "阿拉伯语; 土耳其语; 泰语; 希伯来语; 韩语"
    ),
    "ru": (
        "английский; китайский; русский; испанский; немецкий; французский; итальянский; португальский; японский; "
        "вьетнамский; индонезийский; польский; нидерландский; арабский; турецкий; тайский; иврит; корейский"
    ),
    "es": (
        "inglés; chino; ruso; español; alemán; francés; italiano; portugués; japonés; vietnamita; indonesio; "
        "polaco; neerlandés; árabe; turco; tailandés; hebreo; coreano"
    ),
    "de": (
        "Englisch; Chinesisch; Russisch; Spanisch; Deutsch; Französisch; Italienisch; Portugiesisch; Japanisch; "
        "Vietnamesisch; Indonesisch; Polnisch; Niederländisch; Arabisch; Türkisch; Thailändisch; Hebräisch; "
        "Koreanisch"
    ),
    "fr": (
        "anglais; chinois; russe; espagnol; allemand; français; italien; portugais; japonais; vietnamien; "
        "indonésien; polonais; néerlandais; arabe; turc; thaï; hébreu; coréen"
    ),
    "it": (
        "inglese; cinese; russo; spagnolo; tedesco; francese; italiano; portoghese; giapponese; vietnamita; "
        "indonesiano; polacco; olandese; arabo; turco; thailandese; ebraico; coreano"
    ),
    "pt": (
        "inglês; chinês; russo; espanhol; alemão; francês; italiano; português; japonês; vietnamita; indonésio; "
        "polonês; holandês; árabe; turco; tailandês; hebraico; coreano"
    ),
    "ja": (
        "英語; 中国語; ロシア語; スペイン語; ドイツ語; フランス語; イタリア語; ポルトガル語; 日本語; ベトナム語; "
        "インドネシア語; ポーランド語; オランダ語; アラビア語; トルコ語; タイ語; ヘブライ語; 韓国語"
    ),
    "vi": (
        "Tiếng Anh; Tiếng Trung; Tiếng Nga; Tiếng Tây Ban Nha; Tiếng Đức; Tiếng Pháp; Tiếng Ý; "
        "Tiếng Bồ Đào Nha; Tiếng Nhật; Tiếng Việt; Tiếng Indonesia; Tiếng Ba Lan; Tiếng Hà Lan; Tiếng Ả Rập; "
        "Tiếng Thổ Nhĩ Kỳ; Tiếng Thái; Tiếng Do Thái; Tiếng Hàn"
    ),
    "id": (
        "Inggris; Tionghoa; Rusia; Spanyol; Jerman; Prancis; Italia; Portugis; Jepang; Vietnam; Indonesia; "
        "Polski; Belanda; Arab; Turki; Thai; Ibrani; Korea"
    ),
    "pl": (
        "angielski; chiński; rosyjski; hiszpański; niemiecki; francuski; włoski; portugalski; japoński; "
        "wietnamski; indonezyjski; polski; niderlandzki; arabski; turecki; tajski; hebrajski; koreański"
    ),
    "nl": (
        "Engels; Chinees; Russisch; Spaans; Duits; Frans; Italiaans; Portugees; Japans; Vietnamees; Indonesisch; "
        "Pools; Nederlands; Arabisch; Turks; Thai; Hebreeuws; Koreaans"
    ),
    "ar": (
        "الإنجليزية; الصينية; الروسية; الإسبانية; الألمانية; الفرنسية; الإيطالية; البرتغالية; اليابانية; "
        "الفيتنامية; الإندونيسية; البولندية; الهولندية; العربية; التركية; التايلاندية; العبرية; الكورية"
    ),
    "tr": (
        "İngilizce; Çince; Rusça; İspanyolca; Almanca; Fransızca; İtalyanca; Portekizce; Japonca; Vietnamca; "
        "Endonezce; Lehçe; Felemenkçe; Arapça; Türkçe; Tayca; İbranice; Korece"
    ),
    "th": (
        "อังกฤษ; จีน; รัสเซีย; สเปน; เยอรมัน; ฝรั่งเศส; อิตาลี; โปรตุเกส; ญี่ปุ่น; เวียดนาม; อินโดนีเซีย; "
        "โปแลนด์; ดัตช์; อาหรับ; ตุรกี; ไทย; ฮิบรู; เกาหลี"
    ),
    "he": (
        "אנגלית; סינית; רוסית; ספרדית; גרמנית; צרפתית; איטלקית; פורטוגזית; יפנית; וייטנאמית; אינדונזית; פולנית; "
        "הולנדית; ערבית; טורקית; תאית; עברית; קוריאנית"
    ),
    "ko": (
        "영어; 중국어; 러시아어; 스페인어; 독일어; 프랑스어; 이탈리아어; 포르투갈어; 일본어; 베트남어; "
        "인도네시아어; 폴란드어; 네덜란드어; 아랍어; 튀르키예어; 태국어; 히브리어; 한국어"
    ),
}
NAMES = {language: dict(zip(LANGUAGES, names.split("; "), strict=True)) for language, names in _NAMES.items()}
"""`NAMES[language][code]`: what a language calls the one with a code. From Unicode's CLDR."""

VARIANTS = {
    "en-us": "en",
    "en-gb": "en",
    "es-419": "es",
    "pt-br": "pt",
    "pt-pt": "pt",
    "zh-cn": "zh",
    "zh-hans": "zh",
    "iw": "he",
}
"""Codes of variants that PolyLM does not tell from the language; traditional Chinese is none of them."""

SCRIPTS = {
    **dict.fromkeys(LANGUAGES, ("LATIN",)),
    "zh": ("CJK",),
    "ja": ("CJK", "HIRAGANA", "KATAKANA", "KATAKANA-HIRAGANA"),
    "ko": ("HANGUL", "CJK"),
    "ru": ("CYRILLIC",),
    "ar": ("ARABIC",),
    "he": ("HEBREW",),
    "th": ("THAI",),
}
"""How the names of a language's letters begin in Unicode."""

WITHOUT_SPACES = ("zh", "ja")
"""Languages with no space between sentences."""

TRANSLATIONS = {
    "en": "Beijing is the capital of China.",
    "zh": "北京是中国的首都。",
    "ru": "Пекин — столица Китая.",
    "es": "Pekín es la capital de China.",
    "de": "Peking ist die Hauptstadt von China.",
    "fr": "Pékin est la capitale de la Chine.",
    "it": "Pechino è la capitale della Cina.",
    "pt": "Pequim é a capital da China.",
    "ja": "北京は中国の首都です。",
    "vi": "Bắc Kinh là thủ đô của Trung Quốc.",
    "id": "Beijing adalah ibu kota Tiongkok.",
    "pl": "Pekin to stolica Chin.",
    "nl": "Peking is de hoofdstad van China.",
    "ar": "بكين هي عاصمة الصين.",
    "tr": "Pekin, Çin'in başkentidir.",
    "th": "ปักกิ่งเป็นเมืองหลวงของจีน",
    "he": "בייג'ינג היא בירת סין.",
    "ko": "베이징은 중국의 수도입니다.",
}
"""SENTENCE by ISO 639-1 code."""


def translation_request(sentence: str, language: str, source: str = "English") -> str:
    """Ask for a translation as the published examples do, by the English names of the two languages."""
    return f"{sentence}\nTranslate this sentence from {source} to {language}."


def find_language(given: str) -> str:
    """The ISO 639-1 code of a language by its code or its name in any of the 18 languages, in any case.

    Raises:
        InputError: none of the 18; names the nearest.
    """
    text = given.strip()
    code = text.lower().replace("_", "-")
    if code in LANGUAGES or code in VARIANTS:
        return VARIANTS.get(code, code)
    if (found := _CODES.get(_key(text))) is not None:
        return found
    nearest = nearest_name(_key(text), _CODES, cutoff=0.7)
    advice = (
        f"did you mean {LANGUAGES[_CODES[nearest]]}?" if nearest else f"choose one of {', '.join(LANGUAGES.values())}."
    )
    raise InputError(f"{given!r:.60} is none of PolyLM's 18 languages: {advice}")


def script(letter: str) -> str:
    """The script of a letter, as its name in Unicode begins: 'LATIN', 'CJK', 'HANGUL', ...; '' for other characters."""
    return unicodedata.name(letter, "").split(" ")[0] if letter.isalpha() else ""


def words(text: str) -> list[str]:
    """Words and punctuation marks, without regard to case and compatible forms. Raises DependencyError without ICU.

    ICU also knows languages that are written without spaces. The tokenizer of `rouge_score` sees Latin letters and
    digits only: two equal texts in Japanese, Russian, Arabic or Thai would have nothing in common.
    """
    try:
        from icu4py.breakers import WordBreaker
    except ImportError as error:
        raise DependencyError(f"icu4py finds the words of all languages: {install_command('eval')}") from error
    plain = unicodedata.normalize("NFKC", text).casefold()
    return [word for word in WordBreaker(plain, "en") if not word.isspace()]


def _key(name: str) -> str:
    """A name without its case and accents, so that 'espanol' finds Spanish."""
    parts = unicodedata.normalize("NFKD", name.casefold().replace("ı", "i"))
    return "".join(each for each in parts if not unicodedata.combining(each))


_CODES = {_key(name): code for names in (*NAMES.values(), NATIVE_NAMES) for code, name in names.items()}
_CODES |= {name.removeprefix("tieng "): code for name, code in _CODES.items()}  # "tiếng" is Vietnamese for language
