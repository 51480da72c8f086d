"""Text states: encoded once, found again in the next run, never those of another caption or encoder."""

import hashlib
from types import SimpleNamespace

import pytest
import torch

from core.dataset.caches import store
from core.dataset.caches.texts import ENCODED_AT_ONCE, TextCache
from core.diffusion.text_states import TextStates
from core.training.loop import sources
from core.training.loop.sources import FrozenText
from tests.damage import zero_tensors

ENTRY_BYTES = 77 * 8 * 4


def states_of(caption):
    seed = int.from_bytes(hashlib.sha256(caption.encode()).digest()[:4], "little")
    return torch.randn(77, 8, generator=torch.Generator().manual_seed(seed))


class Encoder:
    def __init__(self):
        self.batches = []

    def __call__(self, captions):
        self.batches.append(list(captions))
        return TextStates(torch.stack([states_of(caption) for caption in captions]))


@pytest.fixture
def cache(tmp_path):
    def make(encoder_id="clip", **options):
        return TextCache(tmp_path / "text", encoder_id, **options)

    return make


def entries(tmp_path):
    return len(list((tmp_path / "text").rglob("*.safetensors")))


def test_captions_come_back_in_the_order_asked_and_are_encoded_once(cache):
    encoder, texts = Encoder(), cache()
    captions = [f"caption {index}" for index in range(11)]
    assert texts.ensure(captions, encoder) == 11
    assert texts.ensure(captions, encoder) == 0 and texts.ensure(captions[::-1], encoder) == 0
    got = texts.get(["caption 3", "caption 0", "caption 3"]).context
    assert torch.equal(got, torch.stack([states_of("caption 3"), states_of("caption 0"), states_of("caption 3")]))
    assert len(encoder.batches) == 2


def test_every_batch_has_the_same_size_so_that_results_do_not_depend_on_company(cache):
    encoder = Encoder()
    cache().ensure([f"caption {index}" for index in range(11)], encoder)
    assert [len(batch) for batch in encoder.batches] == [ENCODED_AT_ONCE] * 2


def test_the_next_run_needs_no_encoder(cache):
    cache().ensure(["a", "b", ""], Encoder())
    never = Encoder()
    texts = cache()
    assert texts.ensure(["", "b", "a"], never) == 0 and not never.batches
    assert torch.equal(texts.get([""]).context[0], states_of(""))


@pytest.mark.parametrize(
    "other", [{"encoder_id": "other"}, {"clip_skip": 2}, {"max_token_length": 150}, {"dtype": "bf16"}]
)
def test_another_encoder_or_way_of_reading_it_is_another_entry(cache, other):
    cache().ensure(["a"], Encoder())
    assert cache(**other).ensure(["a"], Encoder()) == 1


def test_clip_skip_1_is_the_same_as_none(cache):
    cache().ensure(["a"], Encoder())
    assert cache(clip_skip=1).ensure(["a"], Encoder()) == 0


def test_a_small_memory_still_finds_everything(cache):
    texts, encoder = cache(room_bytes=3 * ENTRY_BYTES), Encoder()
    first = [f"start {index}" for index in range(10)]
    texts.ensure(first, encoder)
    for epoch in range(3):  # variants drawn later do not fit either
        variants = [f"variant {epoch} {index}" for index in range(10)]
        assert texts.ensure(variants, encoder) == 10
        for caption in variants + first:
            assert torch.equal(texts.get([caption]).context[0], states_of(caption))
        assert texts._held_bytes <= 3 * ENTRY_BYTES
    assert sum(len(set(batch)) for batch in encoder.batches) == 40


def test_variants_drawn_later_stay_in_memory_while_there_is_room(cache, tmp_path):
    texts = cache()
    texts.ensure(["start"], Encoder())
    texts.ensure(["a shuffled one"], Encoder())
    assert entries(tmp_path) == 1
    assert torch.equal(texts.get(["a shuffled one"]).context[0], states_of("a shuffled one"))


def test_the_folder_does_not_grow_beyond_its_share(cache, tmp_path):
    for run in range(5):
        texts = cache(disk_bytes=4 * (ENTRY_BYTES + 100))
        texts.ensure([f"run {run} caption {index}" for index in range(3)], Encoder())
        assert entries(tmp_path) <= 4
        assert len(texts.get([f"run {run} caption {index}" for index in range(3)]).context) == 3
    assert cache().ensure(["run 4 caption 0"], Encoder()) == 0  # the newest is still there


def test_a_damaged_entry_is_encoded_again(cache, tmp_path):
    cache().ensure(["a"], Encoder())
    (path,) = (tmp_path / "text").rglob("*.safetensors")
    path.write_bytes(path.read_bytes()[:-3])
    texts = cache()
    assert texts.ensure(["a"], Encoder()) == 1
    assert torch.equal(texts.get(["a"]).context[0], states_of("a"))


def test_an_entry_of_zeros_under_its_own_header_is_encoded_again_and_named(cache, tmp_path):
    cache().ensure(["a"], Encoder())
    (path,) = (tmp_path / "text").rglob("*.safetensors")
    zero_tensors(path)
    told = []
    texts = cache(warn=told.append)
    assert texts.ensure(["a"], Encoder()) == 1 and [problem.code for problem in told] == ["cache.damaged"]
    assert torch.equal(texts.get(["a"]).context[0], states_of("a")) and cache().ensure(["a"], Encoder()) == 0


def test_the_type_of_the_states_is_kept(cache):
    cache(dtype="bf16").ensure(["a"], lambda captions: Encoder()(captions).each(torch.Tensor.bfloat16))
    got = cache(dtype="bf16").get(["a"]).context
    assert got.dtype == torch.bfloat16 and torch.equal(got[0], states_of("a").bfloat16())


def test_pooled_vectors_are_kept_beside_the_states(cache):
    def encode(captions):
        return TextStates(Encoder()(captions).context, torch.stack([states_of(caption)[0, :4] for caption in captions]))

    cache().ensure(["a", "b"], encode)
    texts = cache(room_bytes=1)
    assert texts.ensure(["a", "b"], Encoder()) == 0
    got = texts.get(["b", "a"])
    assert torch.equal(got.pooled, torch.stack([states_of("b")[0, :4], states_of("a")[0, :4]]))
    assert texts._held_bytes == ENTRY_BYTES + 4 * 4


def test_a_caption_that_was_not_announced_goes_through_the_encoder(cache):
    texts = cache()
    with pytest.raises(KeyError, match="not cached: 'new'"):
        texts.get(["new"])
    assert torch.equal(texts.get(["new"], Encoder()).context[0], states_of("new"))


def test_states_do_not_depend_on_the_captions_beside_them_in_a_real_encoder(cache, tmp_path):
    """What makes a resumed run equal an unbroken one: it asks for other captions together."""
    from transformers import CLIPTextConfig, CLIPTextModel

    torch.manual_seed(0)
    config = CLIPTextConfig(
        vocab_size=300, hidden_size=64, num_hidden_layers=2, num_attention_heads=4, intermediate_size=128
    )
    model = CLIPTextModel(config).eval()

    @torch.no_grad()
    def encode(captions):
        ids = torch.tensor([[ord(letter) % 299 for letter in caption.ljust(77)] for caption in captions])
        return TextStates(model(ids).last_hidden_state)

    captions = [f"caption number {index}" for index in range(19)]
    together = TextCache(tmp_path / "one", "clip")
    together.ensure(captions, encode)
    for caption in captions:
        alone = TextCache(tmp_path / f"alone {caption}", "clip")
        alone.ensure([caption], encode)
        assert torch.equal(alone.get([caption]).context, together.get([caption]).context)


def test_a_disk_that_fills_up_costs_time_and_never_the_training(cache, monkeypatch):
    warned = []
    texts, encoder = cache(room_bytes=3 * ENTRY_BYTES, warn=warned.append), Encoder()
    texts.ensure([f"start {index}" for index in range(5)], encoder)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("core.record.atomic.replace", full)
    variants = [f"variant {index}" for index in range(20)]
    texts.ensure(variants, encoder)
    for start in range(0, 20, 4):
        got = texts.get(variants[start : start + 4], encoder).context
        assert torch.equal(got, torch.stack([states_of(caption) for caption in variants[start : start + 4]]))
    assert texts._held_bytes <= 3 * ENTRY_BYTES
    assert [problem.code for problem in warned] == ["disk.full"] and texts.unwritten.code == "disk.full"


def test_a_list_costs_only_what_is_new_in_it(cache, monkeypatch):
    """The list of an epoch is asked for at each step; entries that memory has no room for are read when they are used."""

    class Read(list):
        times = 0

        def __iter__(self):
            Read.times += 1
            return super().__iter__()

        def __eq__(self, other):
            raise AssertionError("compared as a whole")

    looked, read = [], store.read_tensors
    monkeypatch.setattr(store, "read_tensors", lambda path, *given: looked.append(path) or read(path, *given))
    texts, captions = cache(room_bytes=2 * ENTRY_BYTES), Read(f"caption {index}" for index in range(10))
    assert texts.ensure(captions, Encoder()) == 10
    times = Read.times
    assert texts.ensure(captions, Encoder()) == 0 and Read.times == times
    looked.clear()
    assert texts.ensure([*captions, "new"], Encoder()) == 1 and len(looked) == 1
    assert torch.equal(texts.get(["caption 0"]).context[0], states_of("caption 0"))


def test_captions_that_could_not_be_encoded_are_missing_still(cache):
    texts, captions = cache(), ["a", "b"]

    def out_of_memory(given):
        raise MemoryError

    for _ in range(2):
        with pytest.raises(MemoryError):
            texts.ensure(captions, out_of_memory)
    assert texts.ensure(captions, Encoder()) == 2


def test_captions_that_are_missing_together_are_encoded_together(cache):
    texts, encoder = cache(), Encoder()
    texts.get(["a", "b", "a", "c"], encoder)
    assert len(encoder.batches) == 1


# ---- encoded while training


def test_captions_are_encoded_when_they_are_asked_for_with_others_in_whole_batches(tmp_path, cache):
    encoder, texts = Encoder(), cache()
    captions = [f"caption {index}" for index in range(20)]
    texts.expect(captions)
    assert texts.waiting == 20 and texts.missing(captions) == captions and not encoder.batches
    assert torch.equal(texts.get(["caption 17"], encoder).context[0], states_of("caption 17"))
    (batch,) = encoder.batches
    assert len(set(batch)) == ENCODED_AT_ONCE and batch[0] == "caption 17" and texts.waiting == 12
    assert entries(tmp_path) == ENCODED_AT_ONCE, "on the disk at once, for a run after this one"
    texts.get(batch, encoder)
    assert len(encoder.batches) == 1
    for caption in captions[::-1]:
        assert torch.equal(texts.get([caption], encoder).context[0], states_of(caption))
    assert [len(batch) for batch in encoder.batches] == [ENCODED_AT_ONCE] * 3 and not texts.waiting
    again = cache()
    again.expect(captions)
    assert not again.waiting and again.get(captions).context.shape[0] == 20


def test_captions_wait_while_others_are_needed_such_as_those_of_a_validation(cache):
    encoder, texts = Encoder(), cache()
    captions = [f"caption {index}" for index in range(20)]
    texts.expect([*captions, "held out"])
    texts.expect(["held out"])
    assert texts.waiting == 21
    texts.get(["held out"], encoder)
    assert texts.waiting == 21 - ENCODED_AT_ONCE and encoder.batches[0][0] == "held out"
    texts.expect(captions)
    assert texts.waiting == 21 - ENCODED_AT_ONCE


def test_of_captions_that_wait_only_the_first_are_written(tmp_path, cache):
    texts = cache()
    texts.expect(["a", "b"])
    texts.get(["a", "b"], Encoder())
    texts.expect(["c", "d"])
    assert texts.waiting == 2
    texts.get(["c"], Encoder())
    assert not texts.waiting and entries(tmp_path) == 2


def test_entries_are_looked_for_and_only_read_when_they_are_asked_for(tmp_path, cache, monkeypatch):
    captions, read, read_tensors = [f"caption {index}" for index in range(9)], [], store.read_tensors
    cache().ensure(captions, Encoder())
    monkeypatch.setattr(store, "read_tensors", lambda path, *more: read.append(path) or read_tensors(path, *more))
    texts = cache()
    texts.expect(captions)
    assert not texts.waiting and not read
    texts.get(captions[:2])
    assert len(read) == 2


def test_a_damaged_entry_is_encoded_when_it_is_asked_for(tmp_path, cache):
    cache().ensure(["a", "b"], Encoder())
    for entry in (tmp_path / "text").rglob("*.safetensors"):
        zero_tensors(entry)
    told, encoder = [], Encoder()
    texts = cache(warn=told.append)
    texts.expect(["a", "b"])
    assert not texts.waiting
    assert torch.equal(texts.get(["a"], encoder).context[0], states_of("a"))
    assert [problem.code for problem in told] == ["cache.damaged"] and len(encoder.batches) == 1


def test_the_encoders_leave_when_no_caption_waits_and_the_time_of_encoding_is_known(cache, monkeypatch):
    clock, left, told = [0.0], [], []
    monkeypatch.setattr(sources, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    encoder = Encoder()

    def encode(captions):
        clock[0] += 3
        return encoder(captions)

    text = FrozenText(cache(), encode, lambda: left.append(1), "cpu", lambda *at: told.append(at))
    text.encodes_in_steps, captions = True, [f"caption {index}" for index in range(10)]
    text.need(captions)
    assert text.count_missing(captions) == 10 and not encoder.batches
    for caption in captions:
        text.need(captions)
        text.states([caption])
        assert len(left) == (len(encoder.batches) == 2)
    assert told == [(8, 10), (10, 10)] and text.seconds == 6
    text.need(["more"])
    text.encode(["more"])
    assert len(encoder.batches) == 3 and not text.count_missing(["more"])
