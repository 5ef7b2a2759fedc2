"""The cache of vectors: killed processes, damaged shards, several recipes, and folders that cannot be written."""

import json
import os
import resource
import signal
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from forks import Forks
from safetensors.numpy import save_file
from sentence_transformers import SentenceTransformer
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

from t5fusion import T5FusionProcessor
from t5fusion.common.progress import Progress
from t5fusion.finetune import vector_cache
from t5fusion.finetune.vector_cache import cache_folder, encode_cached, encode_distinct

DIM = 16
TEXTS = [f"{word} {number}" for number in range(5) for word in ("app", "config with more words", "b", "c d")]


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    """The folder of a small random sentence-transformers model."""
    folder = tmp_path_factory.mktemp("encoder")
    torch.manual_seed(0)
    sizes = {"hidden_size": DIM, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    BertModel(BertConfig(vocab_size=40, max_position_embeddings=64, **sizes)).save_pretrained(folder / "bert")
    words = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "[MASK]",
        *"0123456789",
        "app",
        "config",
        "with",
        "more",
        "words",
        *"bcd",
    ]
    tokenizer = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    marks = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **marks).save_pretrained(folder / "bert")
    model = SentenceTransformer(str(folder / "bert"), device="cpu")  # with the mean of the tokens
    model.max_seq_length = 32
    model.save(str(folder / "whole"))
    return folder / "whole"


@pytest.fixture(autouse=True)
def small_shards(tmp_path, monkeypatch):
    monkeypatch.setenv("T5FUSION_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(vector_cache, "SHARD", 8)


@pytest.fixture
def processor(tokenizer, encoder, monkeypatch):
    """A processor that lists in `asked` the texts that its encoder was given."""
    return counting(T5FusionProcessor(tokenizer, lexical_encoder=str(encoder), lexical_dim=DIM), monkeypatch)


def counting(processor, monkeypatch):
    asked, encode = [], T5FusionProcessor.encode
    monkeypatch.setattr(
        T5FusionProcessor, "encode", lambda self, texts, **o: asked.append(list(texts)) or encode(self, texts, **o)
    )
    processor.__class__.asked = asked
    return processor


def shards():
    return sorted(cache_folder().glob("*/*.safetensors"))


def forget():
    """Forget the shards, as a new process would."""
    vector_cache._cache_in.cache_clear()


def test_a_cached_vector_never_changes(processor):
    vectors = encode_cached(TEXTS, processor)
    parts = [TEXTS[:8], TEXTS[8:16], TEXTS[16:]]
    assert processor.asked == parts and len(shards()) == 3
    assert torch.equal(vectors, torch.cat([processor.encode(part) for part in parts]))
    assert vectors.dtype == torch.float32 and vectors.shape == (20, DIM) and len(vectors.unique(dim=0)) == 20
    torch.testing.assert_close(vectors, encode_distinct(TEXTS, processor))
    processor.asked.clear()
    for known in (False, True):
        order = torch.randperm(20, generator=torch.Generator().manual_seed(int(known))).tolist()
        if not known:
            forget()
        assert torch.equal(encode_cached([TEXTS[index] for index in order], processor), vectors[order])
    assert processor.asked == []


def test_only_new_texts_are_encoded(processor):
    before = encode_cached(TEXTS, processor)
    processor.asked.clear()
    after = encode_cached([TEXTS[0], "new", *TEXTS[1:], "c c c"], processor)
    assert processor.asked == [["new", "c c c"]]
    assert torch.equal(after[[0, *range(2, 21)]], before)
    assert torch.equal(after[[1, 21]], processor.encode(["new", "c c c"]))


def test_a_cache_that_was_emptied_is_filled_again(processor):
    before = encode_cached(TEXTS, processor)
    for shard in shards()[:2]:
        shard.unlink()
    assert torch.equal(encode_cached(TEXTS, processor), before)
    assert len(shards()) == 3


@pytest.mark.parametrize("known", [False, True])
@pytest.mark.parametrize("damage", ["torn", "empty", "a bit", "foreign", "other shape"])
def test_a_damaged_shard_is_reported_and_deleted(processor, capsys, damage, known):
    before = encode_cached(TEXTS, processor)
    shard = shards()[1]
    content = bytearray(shard.read_bytes())
    if damage == "torn":
        shard.write_bytes(content[:-7])
    elif damage == "empty":
        shard.write_bytes(b"")
    elif damage == "a bit":
        content[-3] ^= 1
        shard.write_bytes(content)
    elif damage == "foreign":
        save_file({"vectors": np.ones((2, DIM), dtype=np.float32)}, shard)
    else:
        save_file({"hashes": np.ones(16, dtype=np.uint8), "vectors": np.ones(3, dtype=np.float32)}, shard)
    if not known:
        forget()
    processor.asked.clear()
    capsys.readouterr()
    assert torch.equal(encode_cached(TEXTS, processor), before)
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith(str(shard))]
    assert (
        len(lines) == 1 and "is damaged (" in lines[0] and "). It is deleted, and its vectors are computed" in lines[0]
    )
    assert len(processor.asked) == 1 and len(processor.asked[0]) in (4, 8) and len(shards()) == 3
    forget()
    assert torch.equal(encode_cached(TEXTS, processor), before)


def test_files_of_an_earlier_cache_are_left_alone(processor):
    earlier = cache_folder() / f"{'0' * 32}.safetensors"
    earlier.parent.mkdir(parents=True)
    save_file({"vectors": np.ones((2, DIM), dtype=np.float32)}, earlier)
    before = earlier.read_bytes()
    encode_cached(TEXTS, processor)
    assert earlier.read_bytes() == before and len(shards()) == 3


def test_a_cache_that_cannot_be_written_is_reported_and_the_run_continues(processor, tmp_path, monkeypatch, capsys):
    expected = encode_cached(TEXTS, processor)
    (tmp_path / "file").write_text("not to be lost")
    monkeypatch.setenv("T5FUSION_CACHE", str(tmp_path / "file"))
    assert torch.equal(encode_cached(TEXTS, processor), expected)
    printed = capsys.readouterr().err
    assert printed.count(f"Vectors cannot be cached in {tmp_path / 'file' / 'vectors'} (") == 1
    assert (tmp_path / "file").read_text() == "not to be lost"


def test_a_full_disk_is_reported_once_and_leaves_no_partial_shard(processor, capsys):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (600, hard))  # A shard is larger.
    try:
        vectors = encode_cached(TEXTS, processor)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert capsys.readouterr().err.count("Vectors cannot be cached in ") == 1
    assert [file.suffix for file in cache_folder().rglob("*") if file.is_file()] in ([], [".lock"])
    assert torch.equal(encode_cached(TEXTS, processor), vectors) and len(shards()) == 3


def test_an_interrupted_run_has_cached_what_it_encoded_and_shows_how_far_it_is(processor, monkeypatch, capsys):
    """The pieces are small, so that a line appears soon, and a shard is whole before it is full."""
    monkeypatch.setattr(vector_cache, "PIECE", 2)
    monkeypatch.setattr(vector_cache, "Progress", partial(Progress, every=0.0))
    encode = T5FusionProcessor.encode

    def stop_at_the_last_text(self, texts, **options):
        if TEXTS[6] in texts:
            raise KeyboardInterrupt
        return encode(self, texts, **options)

    monkeypatch.setattr(T5FusionProcessor, "encode", stop_at_the_last_text)
    with pytest.raises(KeyboardInterrupt):
        encode_cached(TEXTS[:8], processor)
    lines = [line.split(",")[0] for line in capsys.readouterr().err.splitlines() if line.startswith("Encoding")]
    assert lines == [f"Encoding: {done} of 8 texts ({done / 8:.0%})" for done in (2, 4, 6)]
    monkeypatch.setattr(T5FusionProcessor, "encode", encode)
    processor = counting(processor, monkeypatch)
    forget()
    monkeypatch.setattr(vector_cache, "SHARD_SECONDS", 0.0)
    encode_cached(TEXTS[:12], processor)
    assert processor.asked == [TEXTS[6:8], TEXTS[8:10], TEXTS[10:12]] and len(shards()) == 4


SLOWLY = """
import sys, time
from t5fusion.finetune import vector_cache
from t5fusion.finetune.vector_cache import encode_cached
from t5fusion.common.base_models import make_processor

vector_cache.SHARD = 2
base, encoder, width, *texts = sys.argv[1:]
processor = make_processor(base, lexical_encoder=encoder, lexical_dim=int(width))
encode = processor.encode
def slowly(texts, **options):
    print("|".join(texts), flush=True)
    time.sleep(0.3)
    return encode(texts, **options)
processor.encode = slowly
print(encode_cached(texts, processor).tolist())
"""


@pytest.fixture
def forks(tmp_path):
    forks = Forks(tmp_path)  # Its cache is the one that `small_shards` sets.
    yield forks
    forks.close()


def asked_of(started, number=None):
    """Return the lines that a process has printed. If `number` is given, wait until there are so many."""
    file, end = Path(f"{started[1]}.out"), time.monotonic() + 120
    while number and (not file.exists() or file.read_text().count("\n") < number):
        assert time.monotonic() < end
        time.sleep(0.01)
    return file.read_text().splitlines()


def test_a_process_that_is_killed_loses_one_shard_at_most(forks, plain_folders, encoder, processor):
    words = [plain_folders["flan"], encoder, DIM, *TEXTS]
    pairs = ["|".join(TEXTS[first : first + 2]) for first in range(0, 20, 2)]
    killed = forks.start(*words, code=SLOWLY)
    assert asked_of(killed, 4) == pairs[:4]  # Now it encodes the fourth shard.
    os.kill(killed[0], signal.SIGKILL)
    assert forks.end(killed)[0] == -signal.SIGKILL and len(shards()) == 3
    code, out, err = forks.run(*words, code=SLOWLY)
    assert code == 0, err
    *asked, printed = out.splitlines()
    assert asked == pairs[3:]
    vectors = torch.tensor(json.loads(printed))
    assert torch.equal(vectors, torch.cat([processor.encode(TEXTS[first : first + 2]) for first in range(0, 20, 2)]))
    processor.asked.clear()
    assert torch.equal(encode_cached(TEXTS, processor), vectors) and processor.asked == []


def test_processes_with_the_same_recipe_encode_once(forks, plain_folders, encoder, tokenizer):
    words = [plain_folders["flan"], encoder, DIM, *TEXTS]
    first = forks.start(*words, code=SLOWLY)
    asked_of(first, 1)
    twin = forks.start(*words, code=SLOWLY)
    encode_cached(TEXTS, T5FusionProcessor(tokenizer, lexical_encoder=str(encoder), lexical_dim=DIM, normalize=False))
    assert len(asked_of(first)) <= 10  # It has not printed its vectors yet.
    (code, out, _), (twins, same, _) = forks.end(first), forks.end(twin)
    assert code == twins == 0 and len(out.splitlines()) == 11
    assert same.splitlines() == out.splitlines()[-1:]  # The twin waited and encoded nothing.


def test_the_size_of_the_cache_is_reported_each_time_it_has_grown(processor, monkeypatch, capsys):
    monkeypatch.setattr(vector_cache, "REPORT_EVERY", 3000)
    for text in TEXTS[:12]:
        encode_cached([text], processor)
    printed = capsys.readouterr().err
    size = sum(shard.stat().st_size for shard in shards())
    assert printed.count("GB of vectors. You may empty it at any time.") == size // 3000 > 0


def test_others_can_read_a_shared_cache(processor, tmp_path):
    encode_cached(TEXTS, processor)
    (tmp_path / "of the umask").touch()
    expected = (tmp_path / "of the umask").stat().st_mode
    assert {shard.stat().st_mode for shard in shards()} == {expected}


def test_encode_distinct_caches_nothing(processor):
    assert encode_distinct(["b", "app", "b"], processor).shape == (3, DIM)
    assert processor.asked == [["b", "app"]] and not cache_folder().exists()


def test_where_the_cache_is(tmp_path, monkeypatch):
    assert cache_folder() == tmp_path / "cache" / "vectors"
    monkeypatch.delenv("T5FUSION_CACHE")
    monkeypatch.delenv("HF_HOME", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "xdg" / "t5fusion" / "vectors"
