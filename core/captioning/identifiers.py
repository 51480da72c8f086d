"""The identifier: how many tokens a word takes, whether the text encoder knows it, and rare words to choose from.

An identifier ("sks") is the word under which a subject is trained. A word that the model has images for mixes them
with the subject; a made-up one falls into pieces that have meanings of their own. Best is a word that is one token and
was rare where the text encoder trained (Ruiz et al. 2022, arXiv:2208.12242, section 3.2).

How rare is read from the vocabulary itself: byte-pair encoding numbers its tokens in the order in which it merged them,
the most frequent first (Sennrich et al. 2016, arXiv:1508.07909), so a high number is a rare word. No torch is loaded.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Any

from core.families.token_count import VOCABULARY
from core.record import draws

COMMON_BELOW = 0.5  # share of the vocabulary: tokens before it are everyday words, names and abbreviations
RARE_FROM = 0.75  # share from which words are proposed
WORD_ENDS = ("</w>",)  # how vocabularies mark a whole word: CLIP behind it,
WORD_BEGINS = ("\u2581", "\u0120")  # T5 and GPT-2 in front of it
PROPOSED = re.compile("[bcdfghjklmnpqrstvwxz]{3,4}")  # without vowels, so that it is hardly a word or a name
# Rare words that stand for something all the same: makes, clubs, channels, units, places. Weather stations (...wx),
# football clubs (...fc) and single letters repeated are told by their form.
WITH_A_MEANING = frozenset(
    """bcc bgt bhm bln blr bnp bpd bpm bps brt bsd btn btv cbp ccd ccg ccp cfp chk clg cls cmdr cng cns crt csk dbs
    dbz ddc dds dmx dns dprk drm dsd dsp dtm dts fck fdny fdr ffl ffxv fpv frc ftp gbc gfs gmbh grl gsp gts hdd
    hgtv hmv hpc hpv hsc hsv http httr jdm jnr kgs khz kjv kkr klm knw kph kpmg kprc kzn lbj ldr lls lnp lpg lsd
    mbps mgt mlg mlm mms mnf mpg mpp msn mth mtr mvc mwf nbl ncr nhc njpw nmd nrg ntv nwsl nwx pbb pbs pcm pdc pgs
    pkg pms pnc ppm ppv prk psst psv pvp qbs qtr rbc rcb rcn rdr rmb rms rps rsc sbk scp sdk sfx sgh shd shld shrm
    sht skc sks slp smw snc snf sng sqft sqm sqn ssb ssh ssr sst stg svc svt swfl szn tbd tbl tbs thn tks tls tms
    tmz tnx tsb tsk tsm tvc tvn tvxq twc txst vpn wdw wftv wsl wsw wtc wwdc wwe ytd""".split()
)
TOLD_MEANINGS = {"sks": "a rifle", "jdm": "Japanese cars", "lsd": "a drug", "hmv": "a shop", "klm": "an airline"}


@dataclass(frozen=True)
class WordFacts:
    """What a word is to a text encoder; of several, the worst of each.

    tokens   how many it takes           pieces   the word as it is cut
    known    one token of the vocabulary stands for the whole word
    common   such a token, and frequent: the model has an image of it
    advice   what that means, for a person
    """

    tokens: int
    pieces: list[str]
    known: bool
    common: bool
    advice: str


# ---- tokenizers


@cache
def read_tokenizer() -> Any:
    """CLIP's tokenizer, which SD 1.x and SDXL share. Loads no torch."""
    from tokenizers import Tokenizer

    return Tokenizer.from_file(str(VOCABULARY))


def _all(tokenizer: Any) -> list[Any]:
    return list(tokenizer) if isinstance(tokenizer, (list, tuple)) else [tokenizer]


def _cut(tokenizer: Any, text: str) -> tuple[list[str], list[int]]:
    """(tokens, ids) of a text without begin and end. Takes transformers' tokenizers and those of `tokenizers`."""
    if hasattr(tokenizer, "convert_tokens_to_ids"):
        tokens = tokenizer.tokenize(text)
        return tokens, [int(number) for number in tokenizer.convert_tokens_to_ids(tokens)]
    found = tokenizer.encode(text, add_special_tokens=False)
    return list(found.tokens), list(found.ids)


@lru_cache(maxsize=1)
def _letters() -> dict[str, int]:
    """GPT-2's letter for each byte, backwards: vocabularies write bytes that are no plain letters as others."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    other = [byte for byte in range(256) if byte not in plain]
    return {chr(byte): byte for byte in plain} | {chr(256 + number): byte for number, byte in enumerate(other)}


def _shown(token: str) -> str:
    """A token as a person reads it; a part of a letter is a mark."""
    for mark in WORD_ENDS:
        token = token.removesuffix(mark)
    for mark in WORD_BEGINS:
        token = token.removeprefix(mark)
    letters = _letters()
    if all(letter in letters for letter in token):
        return bytes(letters[letter] for letter in token).decode("utf-8", "replace")
    return token


def _share(tokenizer: Any, word: str) -> float | None:
    """Where the word's token stands in the vocabulary, 0 (most frequent) to 1; None when it is not one token."""
    tokens, ids = _cut(tokenizer, word)
    if len(tokens) != 1 or _shown(tokens[0]).casefold() != word.casefold():
        return None
    return ids[0] / tokenizer_size(tokenizer)


def tokenizer_size(tokenizer: Any) -> int:
    return len(tokenizer) if hasattr(tokenizer, "__len__") else tokenizer.get_vocab_size()


# ---- about a word


def about(word: str, tokenizer: Any) -> WordFacts:
    """What the word is to a tokenizer, or to each of several (a list)."""
    text = " ".join(word.split())
    cuts = [_cut(one, text)[0] for one in _all(tokenizer)]
    longest = max(cuts, key=len)
    shares = [_share(one, text) if text else None for one in _all(tokenizer)]
    known = all(share is not None for share in shares)
    common = known and any(share is not None and share < COMMON_BELOW for share in shares)
    pieces = [_shown(token) for token in longest]
    advice = _advice_on_one(text, common) if known else _advice_on_pieces(text, pieces, _all(tokenizer)[0])
    return WordFacts(len(longest), pieces, known, common, advice)


def _advice_on_one(word: str, common: bool) -> str:
    if common:
        return "The model already knows it, so its images would mix with yours. Choose a rare word."
    if has_a_meaning(word):
        return f"It is rare, but it also stands for {_meaning(word.casefold())}, which can show in images."
    if PROPOSED.fullmatch(word.casefold()):
        return "It is rare and has almost no meaning of its own."
    return "It is rare. Check that it is not a name or a word in another language, which the model may know."


def _advice_on_pieces(text: str, pieces: Sequence[str], tokenizer: Any) -> str:
    if not pieces:
        return "Write a word made of letters."
    if " " in text:
        return "These are several words. Use one rare word here; the class has its own field."
    shares = {piece: share for piece in pieces if len(piece) >= 3 and (share := _share(tokenizer, piece)) is not None}
    if shares and min(shares.values()) < COMMON_BELOW:
        familiar = min(shares, key=lambda piece: shares[piece])
        return f"It contains the common word '{familiar}', which affects the images. Choose a rare word of one token."
    return "It is split into tokens that other words share. A word of one token is better."


def has_a_meaning(word: str) -> bool:
    """Told by the list and by the form: a weather station's or a football club's sign, one letter repeated."""
    plain = word.casefold()
    return plain in WITH_A_MEANING or plain.endswith(("wx", "fc")) or len(set(plain)) == 1


def _meaning(word: str) -> str:
    if word.endswith("wx"):
        return "the weather reports of a place"
    if word.endswith("fc"):
        return "a football club"
    return TOLD_MEANINGS.get(word, "something else, as an abbreviation")


def identifier_note(word: str, tokenizer: Any = None) -> str:
    """One or two sentences for the person who writes the word. Without a tokenizer CLIP's is asked."""
    text = " ".join(word.split())
    if not text:
        return "Write a rare word as the trigger word of the subject."
    facts = about(text, tokenizer if tokenizer is not None else read_tokenizer())
    count = "1 token" if facts.tokens == 1 else f"{facts.tokens} tokens"
    if facts.known and facts.common:
        return f"'{text}' is 1 token and a common word or name. {facts.advice}"
    if facts.known:
        good = "" if has_a_meaning(text) else ": good"
        return f"'{text}' is 1 token and not a common word{good}. {facts.advice}"
    cut = f" ({' + '.join(facts.pieces)})" if facts.tokens > 1 else ""
    return f"'{text}' is {count}{cut}. {facts.advice}"


# ---- proposals


def propose(tokenizer: Any, number: int, seed: int, taken: Iterable[str] = ()) -> list[str]:
    """Rare words of three or four letters that are one token for every tokenizer given; fewer where there are not enough.

    taken   words that are used already, in any case       seed   another seed, other words
    """
    every = _all(tokenizer)
    used = {word.casefold() for word in taken}
    words = [word for word in candidates(every[0]) if word not in used]
    draws.python_random(seed, "identifier").shuffle(words)
    found: list[str] = []
    for word in words:
        if len(found) >= number:
            break
        if all((_share(one, word) or 0.0) >= RARE_FROM for one in every):
            found.append(word)
    return found


def candidates(tokenizer: Any) -> list[str]:
    """Every word of a vocabulary that is worth proposing, sorted."""
    size = tokenizer_size(tokenizer)
    rare = (token for token, number in tokenizer.get_vocab().items() if number >= RARE_FROM * size)
    return sorted(word for word in _whole_words(rare) if PROPOSED.fullmatch(word) and not has_a_meaning(word))


def _whole_words(tokens: Iterable[str]) -> set[str]:
    """Tokens that are marked as whole words, without the mark."""
    return {_shown(token) for token in tokens if token.endswith(WORD_ENDS) or token.startswith(WORD_BEGINS)}
