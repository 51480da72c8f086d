"""Trigger words: how CLIP tokenizes a word, how common it is, and rare words to choose from. Loads no torch.

A trigger word ("sks") names the trained subject. A common word mixes its meaning with the subject; an invented word is split
into tokens, each with a meaning. Best is a word that is one token and was rare in the text encoder's training data (Ruiz et
al. 2022, arXiv:2208.12242, section 3.2). Byte-pair encoding numbers tokens in the order of its merges, the most frequent
first (Sennrich et al. 2016, arXiv:1508.07909), so a high number is a rare word.
"""

import re
from collections.abc import Iterable

from core.families.token_count import COMMON_BELOW, WORD_END, clip_tokenizer, word_facts
from core.record import draws
from core.record.units import count

RARE_FROM = 0.75  # share from which words are proposed
PROPOSED = re.compile("[bcdfghjklmnpqrstvwxz]{3,4}")  # without vowels, so that it is hardly a word or a name
# Rare words that stand for something all the same: makes, clubs, channels, units, places. Weather stations (...wx),
# football clubs (...fc) and single letters repeated are recognized by their form.
WITH_A_MEANING = frozenset(
    """bcc bgt bhm bln blr bnp bpd bpm bps brt bsd btn btv cbp ccd ccg ccp cfp chk clg cls cmdr cng cns crt csk dbs
    dbz ddc dds dmx dns dprk drm dsd dsp dtm dts fck fdny fdr ffl ffxv fpv frc ftp gbc gfs gmbh grl gsp gts hdd
    hgtv hmv hpc hpv hsc hsv http httr jdm jnr kgs khz kjv kkr klm knw kph kpmg kprc kzn lbj ldr lls lnp lpg lsd
    mbps mgt mlg mlm mms mnf mpg mpp msn mth mtr mvc mwf nbl ncr nhc njpw nmd nrg ntv nwsl nwx pbb pbs pcm pdc pgs
    pkg pms pnc ppm ppv prk psst psv pvp qbs qtr rbc rcb rcn rdr rmb rms rps rsc sbk scp sdk sfx sgh shd shld shrm
    sht skc sks slp smw snc snf sng sqft sqm sqn ssb ssh ssr sst stg svc svt swfl szn tbd tbl tbs thn tks tls tms
    tmz tnx tsb tsk tsm tvc tvn tvxq twc txst vpn wdw wftv wsl wsw wtc wwdc wwe ytd""".split()
)
MEANINGS = {"sks": "a rifle", "jdm": "Japanese cars", "lsd": "a drug", "hmv": "a shop", "klm": "an airline"}


def identifier_note(word: str) -> str:
    """Return advice on a trigger word, up to three sentences."""
    word = " ".join(word.split())
    if not word:
        return "Write a rare word as the trigger word of the subject."
    facts = word_facts(word)
    if facts.common:
        advice = "The model already knows it, so its images would mix with yours. Choose a rare word."
        return f"'{word}' is 1 token and a common word or name. {advice}"
    if facts.rank is not None:
        good = "" if has_a_meaning(word) else ": good"
        return f"'{word}' is 1 token and not a common word{good}. {_advice_on_rare(word.casefold())}"
    split = f" ({' + '.join(facts.tokens)})" if len(facts.tokens) > 1 else ""
    return f"'{word}' is {count(len(facts.tokens), 'token')}{split}. {_advice_on_split(word, facts.tokens)}"


def _advice_on_rare(word: str) -> str:
    """Return advice on a rare word that is one token."""
    if has_a_meaning(word):
        forms = {"wx": "the weather reports of a place", "fc": "a football club"}
        meaning = forms.get(word[-2:]) or MEANINGS.get(word, "something else, as an abbreviation")
        return f"It is rare, but it also stands for {meaning}, which can show in images."
    if PROPOSED.fullmatch(word):
        return "It is rare and has almost no meaning of its own."
    return "It is rare. Check that it is not a name or a word in another language, which the model may know."


def _advice_on_split(word: str, tokens: list[str]) -> str:
    """Return advice on a word that is split into `tokens`."""
    if not tokens:
        return "Write a word made of letters."
    if " " in word:
        return "These are several words. Use one rare word here; the class has its own field."
    ranks = {rank: token for token in tokens if len(token) >= 3 and (rank := word_facts(token).rank) is not None}
    if ranks and min(ranks) < COMMON_BELOW:
        familiar = ranks[min(ranks)]
        return f"It contains the common word '{familiar}', which affects the images. Choose a rare word of one token."
    return "It is split into tokens that other words share. A word of one token is better."


def has_a_meaning(word: str) -> bool:
    """Return whether a rare word has a known meaning: it is in WITH_A_MEANING, ends in "wx" or "fc", or repeats one letter."""
    plain = word.casefold()
    return plain in WITH_A_MEANING or plain.endswith(("wx", "fc")) or len(set(plain)) == 1


def propose(number: int, seed: int, taken: Iterable[str] = ()) -> list[str]:
    """Return `number` rare words of three or four letters that are one token, chosen by the seed.
    taken: words to leave out, in any case"""
    used = {word.casefold() for word in taken}
    words = [word for word in candidates() if word not in used]
    draws.python_random(seed, "identifier").shuffle(words)
    return words[:number]


def candidates() -> list[str]:
    """Return all words of CLIP's vocabulary that may be proposed as trigger words, sorted."""
    vocabulary = clip_tokenizer().get_vocab()
    rare = (token for token, number in vocabulary.items() if number >= RARE_FROM * len(vocabulary))
    words = {token.removesuffix(WORD_END) for token in rare if token.endswith(WORD_END)}
    return sorted(word for word in words if PROPOSED.fullmatch(word) and not has_a_meaning(word))
