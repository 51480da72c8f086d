"""What a word is to CLIP's vocabulary, which is shipped."""

from __future__ import annotations

import subprocess
import sys

import pytest

from core.captioning.identifiers import RARE_FROM, has_a_meaning, identifier_note, propose
from core.families.token_count import clip_tokenizer, word_facts
from core.record.workspace import PROJECT


# Ids are those of CLIP's published vocabulary: dog 1929, sks 48136, of 49408.
@pytest.mark.parametrize(
    ("word", "tokens", "pieces", "known", "common"),
    [
        ("sks", 1, ["sks"], True, False),
        ("SKS", 1, ["sks"], True, False),
        ("dog", 1, ["dog"], True, True),
        ("watercolor", 1, ["watercolor"], True, True),
        ("zwx", 2, ["z", "wx"], False, False),
        ("xjbq", 3, ["x", "jb", "q"], False, False),
        ("sks dog", 2, ["sks", "dog"], False, False),
        ("\u043b\u0438\u0441\u0430", 4, ["\u043b", "\u0438", "\u0441", "\u0430"], False, False),  # a fox in Russian
        ("", 0, [], False, False),
    ],
)
def test_a_word_is_cut_as_clip_cuts_it(word, tokens, pieces, known, common):
    facts = word_facts(word)
    assert (len(facts.tokens), facts.tokens, facts.rank is not None, facts.common) == (tokens, pieces, known, common)
    assert identifier_note(word).endswith(".")


def test_transformers_tokenizer_cuts_the_same():
    from transformers import CLIPTokenizer

    folder = PROJECT / "models" / "starter" / "tokenizer"
    reference = CLIPTokenizer.from_pretrained(str(folder), local_files_only=True)
    for word in ("sks", "dog", "zwx", "redfox", "sks dog", ""):
        assert [token.removesuffix("</w>") for token in reference.tokenize(word)] == word_facts(word).tokens


@pytest.mark.parametrize(
    ("word", "parts"),
    [
        ("ndc", ["'ndc' is 1 token and not a common word: good."]),
        ("sks", ["'sks' is 1 token and not a common word.", "a rifle"]),
        ("dog", ["'dog' is 1 token and a common word or name.", "Choose a rare word"]),
        ("ohwx", ["not a common word.", "weather"]),
        ("fawn", ["not a common word: good", "Check that"]),  # rare, and a word all the same
        ("zwx", ["'zwx' is 2 tokens (z + wx)."]),
        ("mymiradog", ["common word 'dog'"]),
        ("sks dog", ["several words", "class has its own field"]),
        ("  ", ["Write a rare word"]),
    ],
)
def test_a_person_is_told_in_a_sentence(word, parts):
    note = identifier_note(word)
    assert all(part in note for part in parts), note


def test_proposals_are_rare_single_tokens_without_a_meaning():
    words = propose(1000, seed=1)
    assert len(words) >= 80 and len(set(words)) == len(words)
    vocabulary = clip_tokenizer().get_vocab()
    for word in words:
        assert vocabulary[word + "</w>"] >= RARE_FROM * len(vocabulary)
        assert 3 <= len(word) <= 4 and not has_a_meaning(word)
        facts = word_facts(word)
        assert facts.rank is not None and not facts.common and "good" in identifier_note(word)


def test_the_same_seed_proposes_the_same_and_what_is_taken_is_not_proposed():
    first = propose(5, seed=3)
    assert len(first) == 5 and propose(5, seed=3) == first and propose(5, seed=4) != first
    assert not set(propose(1000, seed=3, taken=[word.upper() for word in first])) & set(first)


def test_no_torch_is_loaded():
    code = "import sys; from core.captioning.identifiers import identifier_note as n; n('sks'); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=PROJECT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
