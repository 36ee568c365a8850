"""Filling a JSON Schema from a text by simple rules, so that structured output and tool arguments are valid.

Enums take the label that shares most words with the text; strings, numbers and dates are looked up in the text by the
property's name or format and otherwise take words of the text; booleans are true if the text speaks of the
property; nullable values are null if nothing was found. Every property is given. `pattern` is met if some part
of the text meets it; `not`, `if` and `dependent…` are not read.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from typing import Any

from batchchat.demo.model.label_ranking import Label, make_labels, rank
from batchchat.demo.model.lexicon import STOP_WORDS, content_stems

Choose = Callable[[tuple[Label, ...]], str]
Schema = Mapping[str, Any]

_DEEPEST = 8
"""Levels below which nothing optional is made: a schema that names itself would never end."""
_MOST_ITEMS = 1000
"""Items that a schema may ask for at least."""
_LONGEST_STRING = 100_000
"""Characters that a schema may ask for at least. Both keep an answer in memory, whatever the schema says."""
_EMAIL = r"(?<![\w.+-])[\w.+-]{1,64}@[\w-]{1,63}\.[\w.-]{0,100}\w"
_DATE = r"\b\d{4}-\d{2}-\d{2}\b"
_URL = r"https?://[^\s<>\"')]+"
_NUMBER = re.compile(r"(?<![\w.,-])[-+]?\d{1,15}(?:[.,]\d{1,6}){0,5}(?!\w|[-/:]\d)")
_AMOUNT = r"(\d{1,15}(?:[.,]\d{1,6}){0,5})"
_MONEY = re.compile(rf"[€$£]\s?{_AMOUNT}|(?<![\d.,]){_AMOUNT}\s?(?:[€$£]|eur\b|usd\b|gbp\b|euros?\b|dollars?\b)", re.I)
_FORMATS: Mapping[str, tuple[str, str]] = {
    "email": (_EMAIL, "nobody@example.com"),
    "date": (_DATE, "2026-01-01"),
    "date-time": (r"\b\d{4}-\d{2}-\d{2}T\d{2}:\d{2}:\d{2}(?:\.\d+)?(?:Z|[+-]\d{2}:\d{2})", "2026-01-01T00:00:00Z"),
    "time": (r"\b\d{2}:\d{2}:\d{2}Z", "00:00:00Z"),
    "uri": (_URL, "https://example.com/"),
    "uuid": (r"\b[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}\b", "00000000-0000-4000-8000-000000000000"),
    "ipv4": (r"\b(?:\d{1,3}\.){3}\d{1,3}\b", "127.0.0.1"),
}
_NAMED: tuple[tuple[frozenset[str], str], ...] = (
    (frozenset({"email", "mail", "e-mail"}), _EMAIL),
    (frozenset({"url", "link", "website", "uri"}), _URL),
    (frozenset({"phone", "telephone", "tel", "mobile"}), r"(?<![\d-])(?!\d{4}-\d{2}-\d{2})\+?\d[\d ()/-]{6,20}\d"),
    (frozenset({"date", "day", "deadline", "since"}), rf"{_DATE}|\b\d{{1,2}}[./]\d{{1,2}}[./]\d{{2,4}}\b"),
    (
        frozenset({"id", "number", "reference", "ref", "order", "invoice", "tracking", "code", "version", "sku"}),
        r"\b[A-Z]{1,6}[-_]?\d[\w-]*|#\d[\w-]*|\b\d{4,}\b|\bv?\d+\.\d+(?:\.\d+)*\b",
    ),
    (
        frozenset(
            {"name", "person", "customer", "product", "company", "organisation", "organization", "city", "brand"}
        ),
        r"(?<=[a-z,;:] )[A-Z][a-z]+(?:[ -][A-Z][a-z]+)*",
    ),
)
_SENTENCE_NAMES = frozenset(
    {"summary", "reason", "reasoning", "explanation", "rationale", "description", "comment", "quote"}
)
_LANGUAGE_NAMES = frozenset({"language", "lang", "locale"})
_SCORE_NAMES = frozenset({"score", "rating", "grade", "rate", "stars", "points"})
_SHARE_NAMES = frozenset({"confidence", "probability", "certainty", "likelihood"})
_MONEY_NAMES = frozenset({"amount", "price", "total", "cost", "sum", "value"})
_LANGUAGES: Mapping[str, frozenset[str]] = {
    "en": frozenset(["the", "and", "is", "my", "to", "was", "with", "for", "you", "have"]),
    "fr": frozenset(["le", "la", "les", "est", "pas", "je", "vous", "mon", "une", "avec", "pour", "bonjour"]),
    "de": frozenset(["der", "die", "das", "ist", "nicht", "ich", "und", "mein", "wir", "mit", "ein", "guten"]),
    "es": frozenset(["el", "los", "es", "no", "mi", "con", "una", "por", "que", "hola", "pero"]),
    "it": frozenset(["il", "non", "mio", "che", "sono", "una", "per", "buongiorno", "della"]),
    "pt": frozenset(["o", "não", "meu", "que", "uma", "para", "com", "foi", "olá"]),
    "nl": frozenset(["de", "het", "niet", "mijn", "een", "en", "ik", "met", "van", "hallo"]),
}


def guess_language(text: str) -> str:
    """Guess the language of a text (an ISO 639-1 code) from its script and its commonest words; `en` if unsure."""
    for code, first, last in (("ar", "\u0600", "\u06ff"), ("he", "\u0590", "\u05ff"), ("ru", "\u0400", "\u04ff")):
        if sum(first <= char <= last for char in text) * 4 > len(text):
            return code
    for code, first, last in (("ja", "\u3040", "\u30ff"), ("ko", "\uac00", "\ud7a3"), ("zh", "\u4e00", "\u9fff")):
        if any(first <= char <= last for char in text):
            return code
    present = set(re.findall(r"\w+", text.lower()))
    return max(_LANGUAGES, key=lambda code: (len(_LANGUAGES[code] & present), code == "en"))


def first_words(text: str, count: int) -> str:
    """Return the first `count` words of a text, white space reduced to single spaces."""
    return " ".join(text.split(None, count)[:count])


class Filler:
    """Builds instances of a schema from one text.

    `choose` picks among labels, `labels` are those that the prompt allows (for free strings such as `label`), `score`
    is a verdict from 0 to 1 if the prompt asks for a judgement, `confidence` how sure the labelling is.
    """

    def __init__(
        self,
        root: Schema | bool,
        text: str,
        *,
        choose: Choose,
        labels: tuple[Label, ...] = (),
        score: float | None = None,
        confidence: float = 0.5,
    ) -> None:
        self._root = root
        self._text = text
        self._choose = choose
        self._labels = labels
        self._score = score
        self._confidence = confidence

    def fill(self) -> Any:
        """Return an instance of the root schema."""
        return self._value(self._root, "", 0)

    def _value(self, schema: Schema | bool, name: str, depth: int) -> Any:
        # `true` allows anything, also null. A recursion whose every part is required has no smaller instance.
        if isinstance(schema, bool) or depth > 4 * _DEEPEST:
            return None
        schema = self._resolved(schema)
        if "const" in schema:
            return schema["const"]
        if schema.get("enum"):
            return self._of_enum(schema["enum"])
        kinds, nullable = self._kinds(schema)
        if options := schema.get("anyOf") or schema.get("oneOf"):
            return self._of_options(options, name, depth)
        if not kinds:
            return None
        return self._of_kind(kinds[0], schema, name, depth, optional=nullable)

    def _of_kind(self, kind: str, schema: Schema, name: str, depth: int, *, optional: bool) -> Any:
        match kind:
            case "object":
                return None if optional and depth > _DEEPEST else self._object(schema, depth)
            case "array":
                return None if optional and depth > _DEEPEST else self._array(schema, name, depth)
            case "boolean":
                return self._speaks_of(name, schema)
            case "integer" | "number":
                return self._number(schema, name, whole=kind == "integer", optional=optional)
            case _:
                return self._string(schema, name, optional=optional)

    def _kinds(self, schema: Schema) -> tuple[list[str], bool]:
        """Return the schema's types without null (guessed if it names none), and whether null is allowed."""
        kind = schema.get("type")
        if kind is None:
            if "properties" in schema or "required" in schema:
                return ["object"], False
            return (["array"] if "items" in schema or "prefixItems" in schema else ["string"]), False
        kinds = [kind] if isinstance(kind, str) else [entry for entry in kind if isinstance(entry, str)]
        return [entry for entry in kinds if entry != "null"], "null" in kinds

    def _resolved(self, schema: Schema) -> Schema:
        """Follow local references and merge `allOf`; a reference that leads nowhere allows anything."""
        for _ in range(_DEEPEST):
            reference = schema.get("$ref")
            if not isinstance(reference, str):
                break
            target: Any = self._root
            for step in reference.removeprefix("#").split("/")[1:]:
                key = step.replace("~1", "/").replace("~0", "~")
                target = target.get(key) if isinstance(target, Mapping) else None
            rest = {key: value for key, value in schema.items() if key != "$ref"}
            schema = {**target, **rest} if isinstance(target, Mapping) else rest
        for part in schema.get("allOf") or ():
            if isinstance(part, Mapping):
                schema = _merged(schema, self._resolved(part))
        return schema

    def _of_enum(self, options: list[Any]) -> Any:
        names = [option for option in options if isinstance(option, str)]
        if len(names) > 1:
            return self._choose(make_labels((name, "") for name in names))
        numbers = [option for option in options if isinstance(option, int | float) and not isinstance(option, bool)]
        # A scale as an enum, such as [1, 2, 3, 4, 5]: a judge's verdict is put on it.
        if len(numbers) > 1 and self._score is not None:
            ordered = sorted(numbers)
            return ordered[round(self._score * (len(ordered) - 1))]
        return options[0]

    def _of_options(self, options: list[Any], name: str, depth: int) -> Any:
        resolved = [self._resolved(option) for option in options if isinstance(option, Mapping)]
        filled = [option for option in resolved if option.get("type") != "null"]
        if not filled:
            return None
        optional = len(filled) < len(resolved)
        # Here the recursion may end: null is allowed.
        if optional and depth > _DEEPEST:
            return None
        first = filled[0]
        kinds, _ = self._kinds(first)
        plain = not any(key in first for key in ("enum", "const", "anyOf", "oneOf"))
        if optional and plain and kinds:
            return self._of_kind(kinds[0], first, name, depth + 1, optional=True)
        return self._value(first, name, depth + 1)

    def _object(self, schema: Schema, depth: int) -> dict[str, Any]:
        properties: Mapping[str, Any] = schema.get("properties") or {}
        required = schema.get("required") or ()
        # All of them, required or not, until it is deep: strict servers give every property.
        names = [name for name in properties if depth <= _DEEPEST or name in required]
        filled = {name: self._value(properties[name], name, depth + 1) for name in names}
        extra = schema.get("additionalProperties", True)
        for name in required:
            if name not in filled:
                filled[name] = self._value(extra if isinstance(extra, Mapping) else {"type": "string"}, name, depth + 1)
        return filled

    def _array(self, schema: Schema, name: str, depth: int) -> list[Any]:
        least = min(int(schema.get("minItems", 0)), _MOST_ITEMS)
        most = int(schema.get("maxItems", 1_000_000))
        values = [self._value(part, name, depth + 1) for part in schema.get("prefixItems") or ()]
        items = schema.get("items", {"type": "string"})
        if isinstance(items, bool) or depth > _DEEPEST:
            return values[:most] + [None] * (least - len(values) if items is True else 0)
        items = self._resolved(items)
        if len(values) < most:
            values += self._items(items, name, depth, most - len(values))
        unique = bool(schema.get("uniqueItems"))
        while len(values) < least:
            values.append(
                self._another(items, name, depth, len(values)) if unique else self._value(items, name, depth + 1)
            )
        return values[:most]

    def _items(self, items: Schema, name: str, depth: int, room: int) -> list[Any]:
        kinds, _ = self._kinds(items)
        # A free list of texts, such as keywords: what the text holds, not the same value again and again.
        if kinds[:1] == ["string"] and not items.keys() & {"enum", "const", "format", "pattern", "anyOf", "oneOf"}:
            fitting = [word for word in self._keywords(name) if _fits_length(word, items)]
            return list(fitting[: min(3, room)])
        return [self._value(items, name, depth + 1)]

    def _another(self, items: Schema, name: str, depth: int, index: int) -> Any:
        """Return one more item, unlike those before it if the schema lets it differ."""
        if options := items.get("enum"):
            return options[index % len(options)]
        value = self._value(items, name, depth + 1)
        if isinstance(value, str):
            return f"{value} {index}"
        return value + index if isinstance(value, int | float) and not isinstance(value, bool) else value

    def _keywords(self, name: str) -> list[str]:
        """Return what the text holds for a list of that name: found values, else its longest words in order."""
        if pattern := _pattern_for(_name_words(name) | {word.rstrip("s") for word in _name_words(name)}):
            return list(dict.fromkeys(re.findall(pattern, self._text)))
        words = [word for word in re.findall(r"[^\W\d_]{4,30}", self._text) if word.lower() not in STOP_WORDS]
        return list(dict.fromkeys(word.lower() for word in words))

    def _speaks_of(self, name: str, schema: Schema) -> bool:
        about = make_labels([(name.removeprefix("is_").removeprefix("has_"), str(schema.get("description", "")))])
        return rank(about, self._text).confidence > 0

    def _number(self, schema: Schema, name: str, *, whole: bool, optional: bool) -> int | float | None:
        words = _name_words(name)
        low, high = _bounds(schema, whole=whole)
        found: float | None = None
        # A judge's number, whatever the property is called, if it has both bounds.
        if words & _SCORE_NAMES or (self._score is not None and low is not None and high is not None):
            share = self._score if self._score is not None else self._confidence
            bottom = low if low is not None else 1.0
            found = bottom + share * ((high if high is not None else bottom + 4) - bottom)
        elif words & _SHARE_NAMES:
            found = round(self._confidence, 2) * (100 if high is not None and high > 1 else 1)
        else:
            found = next((value for value in self._numbers(words) if _within(value, low, high)), None)
        if found is None:
            if optional:
                return None
            found = low if low is not None else min(0.0, high) if high is not None else 0.0
        # The bounds of the schema go before what the text says.
        found = max(found, low) if low is not None else found
        found = min(found, high) if high is not None else found
        step = schema.get("multipleOf")
        if isinstance(step, int | float) and step > 0:
            found = math.ceil(found / step) * step if low is not None else math.floor(found / step) * step
        return round(found) if whole else round(found, 6)

    def _numbers(self, words: set[str]) -> list[float]:
        texts = _NUMBER.findall(self._text)
        # An amount with its currency is surer than the first number of the text, which may be an order's.
        if words & _MONEY_NAMES:
            texts = [before or after for before, after in _MONEY.findall(self._text)] or texts
        return [_parsed(text) for text in texts]

    def _string(self, schema: Schema, name: str, *, optional: bool) -> str | None:
        format_ = schema.get("format")
        if isinstance(format_, str) and format_ in _FORMATS:
            pattern, default = _FORMATS[format_]
            found = re.search(pattern, self._text)
            return found[0] if found else None if optional else default
        if isinstance(expression := schema.get("pattern"), str):
            return self._by_pattern(expression, optional=optional)
        found_text = self._named_string(name)
        if found_text is None and optional:
            return None
        value = found_text if found_text is not None else first_words(self._text, 6)
        least, most = min(int(schema.get("minLength", 0)), _LONGEST_STRING), schema.get("maxLength")
        if len(value) < least:
            value = (value + " " if value else "") + "." * max(0, least - len(value) - bool(value))
        return value if most is None else value[: int(most)]

    def _by_pattern(self, pattern: str, *, optional: bool) -> str | None:
        try:
            whole = re.compile(pattern)
            part = re.compile(pattern.removeprefix("^").removesuffix("$"))
        # A form of JavaScript that Python has not.
        except re.error:
            return first_words(self._text, 6)
        matches = (match[0] for match in part.finditer(self._text))
        samples = ("A", "a", "0", "AB", "ab", "00", "ABC", "abc", "000", "ABC-123", "2026-01-01", "AB-0000", "0000")
        found = next((text for text in (*matches, *samples) if whole.search(text)), None)
        return found if found is not None or optional else first_words(self._text, 6)

    def _named_string(self, name: str) -> str | None:
        """Return what the text holds for a string of that name; None if it holds nothing."""
        words = _name_words(name)
        if words & _LANGUAGE_NAMES:
            return guess_language(self._text)
        if words & _SENTENCE_NAMES:
            sentence = re.split(r"(?<=[.!?])\s+|\n+", self._text.strip(), maxsplit=1)[0]
            return first_words(sentence, 20)
        if pattern := _pattern_for(words):
            found = re.search(pattern, self._text)
            return found[0] if found else None
        # The prompt allows labels, and this string is no other thing that is known: it is the label.
        if self._labels:
            return self._choose(self._labels)
        return first_words(self._text, 6) if content_stems(self._text) else None


def _merged(schema: Schema, part: Schema) -> Schema:
    """Merge one member of `allOf` into its schema: properties and required together, the rest as the part says."""
    merged = {**schema, **{key: value for key, value in part.items() if key != "allOf"}}
    if "properties" in schema and "properties" in part:
        merged["properties"] = {**schema["properties"], **part["properties"]}
    if "required" in schema and "required" in part:
        merged["required"] = list(dict.fromkeys([*schema["required"], *part["required"]]))
    return merged


def _name_words(name: str) -> set[str]:
    return set(re.sub(r"(?<=[a-z])(?=[A-Z])|[_\-\s]+", " ", name).lower().split())


def _pattern_for(words: set[str]) -> str | None:
    return next((pattern for names, pattern in _NAMED if names & words), None)


def _fits_length(text: str, schema: Schema) -> bool:
    return int(schema.get("minLength", 0)) <= len(text) <= int(schema.get("maxLength", len(text)))


def _bounds(schema: Schema, *, whole: bool) -> tuple[float | None, float | None]:
    """Return the lowest and highest value allowed; exclusive bounds move inwards by 1 or by a thousandth."""
    step = 1 if whole else 0.001
    lows = [float(schema["minimum"])] if "minimum" in schema else []
    highs = [float(schema["maximum"])] if "maximum" in schema else []
    if isinstance(bound := schema.get("exclusiveMinimum"), int | float) and not isinstance(bound, bool):
        lows.append(math.floor(bound) + step if whole else bound + step)
    if isinstance(bound := schema.get("exclusiveMaximum"), int | float) and not isinstance(bound, bool):
        highs.append(math.ceil(bound) - step if whole else bound - step)
    low, high = max(lows, default=None), min(highs, default=None)
    if whole:
        return None if low is None else math.ceil(low), None if high is None else math.floor(high)
    return low, high


def _within(value: float, low: float | None, high: float | None) -> bool:
    return (low is None or value >= low) and (high is None or value <= high)


def _parsed(text: str) -> float:
    """Read a number as people write it: the last of `.` and `,` is the decimal sign unless three digits follow."""
    mark = max(text.rfind("."), text.rfind(","))
    # Three digits behind the last mark are thousands: 1,250 is no 1.25.
    if mark >= 0 and len(text) - mark - 1 != 3:
        return float(re.sub(r"[.,]", "", text[:mark]) + "." + text[mark + 1 :])
    return float(re.sub(r"[.,]", "", text))
