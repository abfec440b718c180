"""The offline embedder: signed feature hashing, so that nearest neighbours work without any key or model."""

import re
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import pairwise
from math import fsum, log, sqrt
from zlib import crc32

DIMENSIONS = 384
# Past this the text is cut: hashing runs on the event loop, and 4,000 characters take a few milliseconds.
TEXT_MAX = 4_000
EMPTY = "empty"
SHARPNESS = 4

_WORD = re.compile(r"\w+(?:['’]\w+)*")


def embed(text: str, dimensions: int = DIMENSIONS) -> list[float]:
    """A unit vector that is the same in every process; texts that share wording point the same way.

    Words, pairs of neighbouring words and the 3- and 4-grams within each word are hashed to a signed axis.
    A text without any of these (empty, white space) gets one fixed unit vector, since cosine is not defined at zero.
    """
    vector = [0.0] * dimensions
    for feature, count in Counter(_features(_fold(text))).items():
        code = crc32(feature.encode("utf-8", "surrogatepass"))
        weight = 1.0 + log(count) if count > 1 else 1.0
        vector[(code >> 1) % dimensions] += weight if code & 1 else -weight
    norm = sqrt(fsum(x * x for x in vector))
    if norm == 0.0:
        vector[crc32(EMPTY.encode()) % dimensions] = norm = 1.0
    return [x / norm for x in vector]


def vote(neighbours: Sequence[tuple[str, float]]) -> tuple[str, float]:
    """The label with the largest share of the weight, and that share, from (label, cosine similarity) pairs.

    A neighbour weighs its similarity to the fourth power, so that one near twin outvotes several strangers.
    A tie goes to the label seen first; without a neighbour above zero the answer is ("", 0.0).
    """
    weights: dict[str, float] = {}
    for label, similarity in neighbours:
        weights[label] = weights.get(label, 0.0) + max(similarity, 0.0) ** SHARPNESS
    total = sum(weights.values())
    if total == 0.0:
        return "", 0.0
    best = max(weights, key=weights.__getitem__)
    return best, weights[best] / total


def _fold(text: str) -> str:
    return unicodedata.normalize("NFKC", text[:TEXT_MAX]).casefold()[:TEXT_MAX]


def _features(text: str) -> Iterator[str]:
    words: list[str] = _WORD.findall(text)
    yield from words
    for left, right in pairwise(words):
        yield f"{left} {right}"
    for word in words or text.split():
        yield from _grams(f"<{word}>")


def _grams(word: str) -> Iterator[str]:
    for size in (3, 4):
        for start in range(len(word) - size + 1):
            yield word[start : start + size]
