"""Weighted captions give sd-scripts' runs, tokens and weights."""

from functools import cache
from pathlib import Path

import pytest
import torch

from core.families import family
from core.families.clip import join_whole
from core.families.prompt_weights import read_weights, runs_of, weight_error
from core.families.token_weights import weigh, weighted_windows
from core.families.tokenizer import load_tokenizer
from core.record.workspace import PROJECT
from tests.recorded_json import recorded_json

STARTER = PROJECT / "models" / "starter"
VECTORS = Path(__file__).resolve().parents[1] / "vectors"
tokenizer_of = cache(load_tokenizer)  # a second each
CASES = recorded_json("prompts")["cases"]
SDXL = recorded_json("prompts_sdxl")["cases"]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["prompt"][:30])
def test_runs_tokens_and_weights_are_those_of_sd_scripts(case):
    assert [text for text, _ in runs_of(case["prompt"])] == [text for text, _ in case["attention"]]
    assert [weight for _, weight in runs_of(case["prompt"])] == pytest.approx([one for _, one in case["attention"]])
    tokenizer = tokenizer_of()
    for length, name in ((75, "77"), (150, "150"), (225, "225")):
        ids, weights = weighted_windows(tokenizer, [case["prompt"]], length)
        if f"weighted_ids_{name}" not in case:  # equal to a shorter length: left out of the file
            continue
        assert ids.tolist() == case[f"weighted_ids_{name}"]
        torch.testing.assert_close(weights, torch.tensor(case[f"weights_{name}"]).view_as(weights))


@pytest.mark.parametrize("case", SDXL, ids=lambda case: case["prompt"][:30])
def test_both_tokenizers_of_sdxl_give_sd_scripts_tokens_and_weights(case):
    for tokenizer, wanted, factors in zip(sdxl_tokenizers(), *case["weighted"], strict=True):
        ids, weights = weighted_windows(tokenizer, [case["prompt"]], 75)
        assert ids.tolist() == wanted
        torch.testing.assert_close(weights, torch.tensor(factors).view_as(weights))


def sdxl_tokenizers():
    return [tokenizer_of(), tokenizer_of(pad="!", pad_is_mark=False)]


def test_weights_multiply_the_states_and_leave_plain_captions_as_they_are():
    kind = family("sd1")
    components = kind.load(STARTER, parts=("text_encoders", "tokenizers"))
    plain = kind.encode_captions(components, ["a red fox"]).context
    same = kind.encode_captions(components, ["a red fox"], runs=runs_of).context
    torch.testing.assert_close(same, plain)
    heavy = kind.encode_captions(components, ["a (red:1.5) fox"], runs=runs_of).context
    torch.testing.assert_close(heavy[:, 2], plain[:, 2] * 1.5)
    torch.testing.assert_close(torch.cat([heavy[:, :2], heavy[:, 3:]], 1), torch.cat([plain[:, :2], plain[:, 3:]], 1))


def test_states_can_keep_the_mean_of_a_text_as_in_sd_scripts_0_9():
    """Both rows of the weighed half times 3: (1 + 1 + 3 + 3) / 4 = 2 times the mean of ones, so all is halved."""
    states = torch.ones(1, 2, 77, 4)
    factors = torch.ones(1, 2, 77)
    factors[:, 1] = 3.0
    weighed = weigh(states, [factors], 0, normalize="original")
    torch.testing.assert_close(weighed, torch.tensor([0.5, 1.5]).view(1, 2, 1, 1).expand_as(states))
    two = weigh(
        torch.cat([states, 2 * states]), [torch.cat([factors, torch.ones_like(factors)])], 0, normalize="original"
    )
    assert torch.equal(two[1], 2 * states[0]), "each text for itself"


@pytest.mark.parametrize("pad", [None, "!"])
def test_then_windows_are_whole_and_filled_with_eos_also_for_sd2(pad):
    tokenizer = tokenizer_of() if pad is None else tokenizer_of(pad=pad, pad_is_mark=False)
    text = " ".join(["fox"] * 80)
    ids, weights = weighted_windows(tokenizer, [f"({text}:1.5)"], 150, filled_with_end=True)
    begin, end, fox = tokenizer.bos_token_id, tokenizer.eos_token_id, int(ids[0, 0, 1])
    assert ids.tolist() == [[[begin, *[fox] * 75, end], [begin, *[fox] * 5, *[end] * 71]]]
    assert weights.tolist() == [[[1, *[1.5] * 75, 1], [1, *[1.5] * 5, *[1] * 71]]]


def test_captions_with_the_mean_kept_have_the_mean_of_plain_ones():
    kind = family("sd1")
    components = kind.load(STARTER, parts=("text_encoders", "tokenizers"))
    how = {"max_token_length": 150, "join": join_whole}
    plain = kind.encode_captions(components, ["a red fox"], **how).context
    kept = kind.encode_captions(
        components, ["a (red:1.5) fox"], runs=runs_of, normalize="original", filled_with_end=True, **how
    ).context
    assert kept.shape == (1, 154, plain.shape[-1]) and not torch.allclose(kept, plain)
    torch.testing.assert_close(kept.mean(), plain.mean())
    factor = kept[:, 0] / plain[:, 0]
    torch.testing.assert_close(kept[:, 2] / plain[:, 2], 1.5 * factor)


@pytest.mark.parametrize("number", ["1.2.3", ".", "+.", "..5"])
def test_a_weight_that_is_no_number_is_refused_where_a_bracket_is_open(number):
    with pytest.raises(ValueError, match="is not a number"):
        runs_of(f"(x:{number})")
    assert number in weight_error(f"(x:{number})")
    assert weight_error(f"x:{number})") == weight_error("(x:1.2) (y:a)") == ""


@pytest.mark.parametrize(
    ("text", "runs", "faults"),
    [
        ("a (b:1000)", [("a ", 1.0), ("b", 1000.0)], [(5, 9, "high")]),
        ("(b:-1000)", [("b", -1000.0)], [(3, 8, "high")]),
        ("(b:1000.5)", [("b", 1.0)], [(3, 9, "weight")]),
        ("(b", [("b", 1.1)], [(0, 1, "open")]),
        ("a [b", [("a ", 1.0), ("b", 1 / 1.1)], [(2, 3, "open")]),
        ("a)", [("a)", 1.0)], [(1, 2, "extra")]),
        ("a]", [("a]", 1.0)], [(1, 2, "extra")]),
        ("a:1.2)", [("a:1.2)", 1.0)], [(5, 6, "extra")]),
        ("(a: 1.2)", [("a: 1.2", 1.1)], [(2, 7, "text")]),
        ("(a:1,2)", [("a:1,2", 1.1)], [(2, 6, "text")]),
        ("(a:high)", [("a:high", 1.1)], [(2, 7, "text")]),
        ("(a:b c)", [("a:b c", 1.1)], []),
        ("(a:12345678)", [("a", 1.0)], [(3, 11, "weight")]),
        ("(a:abcdefgh)", [("a:abcdefgh", 1.1)], [(2, 11, "text")]),
        ("(a:abcdefghi)", [("a:abcdefghi", 1.1)], []),
        (r"\(a\)", [("(a)", 1.0)], []),
        ("", [("", 1.0)], []),
        ("()", [("", 1.0)], []),
    ],
)
def test_what_is_a_fault_in_weights_is_told_with_its_place(text, runs, faults):
    found, told = read_weights(text)
    assert found == [(part, pytest.approx(weight)) for part, weight in runs]
    assert [(fault.start, fault.end, fault.kind) for fault in told] == faults


def test_100_brackets_may_be_open():
    assert not weight_error("(" * 100 + "a" + ")" * 100) and not weight_error("(" * 50 + "[" * 50)
    for text in ("(" * 101, "(" * 50 + "[" * 51):
        (fault,) = (fault for fault in read_weights(text)[1] if fault.kind == "nested")
        assert (fault.start, fault.end) == (100, 101)
