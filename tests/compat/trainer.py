"""Trainer and Seq2SeqTrainer: their arguments, in full fine-tuning and with LoRA."""

import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from tempfile import mkdtemp

import numpy as np
import torch
from datasets import Dataset
from hub_server import HubServer
from huggingface_hub import create_repo, upload_folder
from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training
from shared_fixtures import DIM, HIDE_THE_PACKAGE
from transformers import (
    AutoTokenizer,
    BitsAndBytesConfig,
    DataCollatorForSeq2Seq,
    EarlyStoppingCallback,
    PrinterCallback,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
    TrainerCallback,
)
from warm import warm_python

from t5fusion import DataCollatorWithFusion, T5FusionProcessor

from .models import CLASSES, KEPT, batch_for, load, logits_of, plain_folder
from .table import Table, as_error
from .upstream import TESTS

SOME_WITHOUT = (1, 0, 2)  # numbers of vectors of the rows, in turn


def tokenizer():
    return AutoTokenizer.from_pretrained(plain_folder())


def texts(count: int) -> list[str]:
    return ["".join(chr(97 + (7 * row + place) % 26) for place in range(2 + row % 5)) for row in range(count)]


def rows_for(model_name: str, vectors=(1,), count: int = 8) -> Dataset:
    """Return rows of several lengths.

    For the fused model, they have `vectors` vectors in turn. A data set holds None for no vector.
    """
    tokenize, numbers = tokenizer(), torch.Generator().manual_seed(0)
    rows = []
    for index, text in enumerate(texts(count)):
        rows.append({**tokenize(f"Filename: {text}"), "labels": tokenize(f"settings {text[::-1]}").input_ids})
        if model_name == "T5WithFusion":
            number = vectors[index % len(vectors)]
            rows[-1]["lexical_embeds"] = torch.randn(number, DIM, generator=numbers).tolist() or None
    return Dataset.from_list(rows)


def model_for(model_name: str, lora: bool, base=None, **options) -> torch.nn.Module:
    torch.manual_seed(0)
    model = base or load(model_name, **options)
    fusion = ["fusion"] if model_name == "T5WithFusion" else None
    config = LoraConfig(task_type="SEQ_2_SEQ_LM", r=4, target_modules=["q", "v"], modules_to_save=fusion)
    return get_peft_model(model, config) if lora else model


def collator_for(model_name: str, model=None) -> Callable:
    """Return the usual collator. Label smoothing needs it to know the model."""
    kind = DataCollatorWithFusion if model_name == "T5WithFusion" else DataCollatorForSeq2Seq
    return kind(tokenizer(), model=model)


def trainer_for(model_name: str, lora: bool, model=None, rows=None, collator=None, parts=None, **arguments):
    """Return a Trainer for 4 steps of all 8 rows. `parts` are further arguments of the Trainer."""
    usual = {"use_cpu": True, "report_to": "none", "disable_tqdm": True, "save_strategy": "no", "logging_steps": 1}
    usual |= {"per_device_train_batch_size": 8, "per_device_eval_batch_size": 4, "max_steps": 4, "learning_rate": 1e-2}
    parts = {"model": model or model_for(model_name, lora)} | (parts or {})
    rows = rows or rows_for(model_name)
    trainer = Seq2SeqTrainer(
        args=Seq2SeqTrainingArguments(mkdtemp(dir=KEPT.name), **usual | arguments),
        train_dataset=rows, eval_dataset=rows, data_collator=collator or collator_for(model_name), **parts,
    )  # fmt: skip
    trainer.remove_callback(PrinterCallback)
    return trainer


def losses(trainer) -> list[float]:
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


@torch.no_grad()
def loss_now(trainer) -> float:
    """Return the mean loss of the rows, two at a time, without dropout."""
    model, rows = trainer.model.eval(), list(trainer.train_dataset)
    batches = [trainer.data_collator(rows[start : start + 2]) for start in range(0, len(rows), 2)]
    return float(np.mean([model(**batch).loss.item() for batch in batches]))


def train(trainer) -> list[float]:
    """Train, and return the losses of the steps. Check that the loss falls and that a fusion layer changes."""
    before = {name: value.detach().clone() for name, value in trainer.model.named_parameters() if value.requires_grad}
    start = loss_now(trainer)
    trainer.train()
    step_losses, end = losses(trainer), loss_now(trainer)
    assert np.isfinite(step_losses).all() and end < start, f"the loss goes from {start:.4f} to {end:.4f}"
    stays = [name for name, value in trainer.model.named_parameters() if name in before and value.equal(before[name])]
    fusion = [name for name in stays if "fusion" in name]
    assert not fusion, f"{fusion[0]} stays"
    return step_losses


# The checks. Each takes "T5" or "T5WithFusion", and whether to add LoRA.


def trains(model_name: str, lora: bool) -> None:
    train(trainer_for(model_name, lora))


def trains_with(**arguments) -> Callable:
    def check(model_name: str, lora: bool) -> None:
        train(trainer_for(model_name, lora, **arguments))

    return check


def trains_rows_without_vectors(model_name: str, lora: bool) -> None:
    """Train one row at a time, so that some batches have no vectors."""
    rows = rows_for(model_name, SOME_WITHOUT, 4)
    train(trainer_for(model_name, lora, rows=rows, per_device_train_batch_size=1, max_steps=8))


def predicts_with_generate(model_name: str, lora: bool) -> None:
    seen = []

    def compute_metrics(prediction) -> dict[str, float]:
        ids = np.where(prediction.predictions == -100, 0, prediction.predictions)
        seen.extend(tokenizer().batch_decode(ids, skip_special_tokens=True))
        return {"length": float((ids != 0).sum())}

    options = {"predict_with_generate": True, "generation_max_length": 6, "generation_num_beams": 2}
    trainer = trainer_for(model_name, lora, parts={"compute_metrics": compute_metrics}, **options)
    train(trainer)
    predicted = trainer.predict(trainer.eval_dataset)
    assert "test_length" in predicted.metrics and len(seen) == len(trainer.eval_dataset)
    batch = trainer.data_collator([trainer.eval_dataset[row] for row in range(4)])
    del batch["labels"]
    expected = trainer.model.eval().generate(**batch, max_length=6, num_beams=2)
    assert (predicted.predictions[:4, : expected.shape[1]] == expected.numpy()).all(), "not what `generate` writes"


def predicts(model_name: str, lora: bool) -> None:
    """`Trainer.predict` gives the model's logits, gathered at once and step by step."""
    at_once = trainer_for(model_name, lora, rows=rows_for(model_name, SOME_WITHOUT))
    prediction = at_once.predict(at_once.eval_dataset)
    model = at_once.model
    in_steps = trainer_for(model_name, lora, model, rows=at_once.eval_dataset, eval_accumulation_steps=1)
    again = in_steps.predict(in_steps.eval_dataset)
    batch = at_once.data_collator([at_once.eval_dataset[row] for row in range(4)])
    with torch.no_grad():
        expected = model.eval()(**batch).logits.numpy()
    assert np.array_equal(prediction.predictions[0][:4, : expected.shape[1]], expected)
    assert all(map(np.array_equal, prediction.predictions, again.predictions)) and prediction.metrics["test_loss"] > 0


def sampling(strategy: str) -> Callable:
    def check(model_name: str, lora: bool) -> None:
        rows = rows_for(model_name, count=64)
        options = {"per_device_train_batch_size": 4, "max_steps": 8}
        trainer = trainer_for(model_name, lora, rows=rows, train_sampling_strategy=strategy, **options)
        batches = [batch["attention_mask"] for batch in trainer.get_train_dataloader()]
        padding = [int((mask == 0).sum()) for mask in batches]
        rows_seen = sum(map(len, batches))
        assert rows_seen == 64 and (sum(padding) < 50) == (strategy == "group_by_length"), f"padding of {padding}"
        train(trainer)

    return check


def finds_a_batch_size(model_name: str, lora: bool) -> None:
    model = model_for(model_name, lora)

    def fill_memory(module, args, kwargs):
        batch = len(next(value for value in kwargs.values() if value is not None))
        if batch > 2:  # torch's message on a CPU
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    model.get_encoder().register_forward_pre_hook(fill_memory, with_kwargs=True)
    trainer = trainer_for(model_name, lora, model, auto_find_batch_size=True, max_steps=8)
    train(trainer)
    assert trainer.state.train_batch_size <= 2, f"it trains with {trainer.state.train_batch_size} rows"


def smooths_labels(model_name: str, lora: bool) -> None:
    model = model_for(model_name, lora, dropout_rate=0.0)
    options = {"label_smoothing_factor": 0.1, "predict_with_generate": True, "generation_max_length": 6}
    trainer = trainer_for(model_name, lora, model, collator=collator_for(model_name, model), **options)
    batch = trainer.data_collator([trainer.train_dataset[row] for row in range(8)])
    with torch.no_grad():
        logits = model(**batch).logits
    expected = torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch["labels"].flatten(), label_smoothing=0.1)
    step_losses = train(trainer)
    np.testing.assert_allclose(step_losses[0], expected.item(), rtol=1e-5)
    assert trainer.evaluate()["eval_loss"] > 0


def smooths_labels_without_a_model(model_name: str, lora: bool) -> None:
    train(trainer_for(model_name, lora, label_smoothing_factor=0.1))


def resumes(model_name: str, lora: bool) -> None:
    """Resume in the middle of an epoch, with dropout. Other initial weights must not matter."""
    options = {"max_steps": 6, "save_strategy": "steps", "save_steps": 3, "per_device_train_batch_size": 2}
    whole = trainer_for(model_name, lora, learning_rate=1e-3, **options)
    whole.train()
    model = model_for(model_name, lora)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(parameter.requires_grad)
    resumed = trainer_for(model_name, lora, model, learning_rate=1e-3, **options)
    resumed.train(resume_from_checkpoint=f"{whole.args.output_dir}/checkpoint-3")
    assert losses(resumed) == losses(whole), f"{losses(resumed)} after resuming, {losses(whole)} without"
    ours, theirs = whole.model.state_dict(), resumed.model.state_dict()
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items()), "the weights differ"


def loads_best_and_stops_early(model_name: str, lora: bool) -> None:
    """If a metric gets worse, its first value is the best."""
    options = {"eval_strategy": "steps", "eval_steps": 1, "save_strategy": "steps", "save_steps": 1, "max_steps": 6}
    options |= {"load_best_model_at_end": True, "metric_for_best_model": "eval_loss", "greater_is_better": True}
    stop = {"callbacks": [EarlyStoppingCallback(2)]}
    trainer = trainer_for(model_name, lora, parts=stop, **options)
    train_losses = trainer.train() and losses(trainer)
    assert len(train_losses) == 3, f"it stops after {len(train_losses)} steps"
    assert trainer.state.best_global_step == 1
    assert trainer.evaluate()["eval_loss"] == trainer.state.best_metric, "it is not the best"


class Watch(TrainerCallback):
    """Record the input of the encoder's first block in the first step."""

    def on_step_begin(self, args, state, control, model=None, **kwargs):
        if state.global_step == 0:
            self.hook = model.get_encoder().block[0].register_forward_pre_hook(self.keep)

    def keep(self, module, args):
        self.seen = args[0].detach()
        self.hook.remove()


def noise_reaches_text(model_name: str, lora: bool) -> None:
    """The noise on each token of the text is at most alpha / sqrt(length * width), as in the paper."""
    entered, watch = {}, Watch()
    for alpha in (None, 5.0):
        model = model_for(model_name, lora, dropout_rate=0.0)
        trainer = trainer_for(model_name, lora, model, parts={"callbacks": [watch]}, neftune_noise_alpha=alpha)
        torch.manual_seed(0)
        train(trainer)
        entered[alpha] = watch.seen
    noise = (entered[5.0] - entered[None]).abs()
    is_vector = (noise == 0).all(-1)
    assert not is_vector.all(), "no noise reaches the encoder"
    assert noise.max() <= 5 / noise[0].numel() ** 0.5 + 1e-6
    assert is_vector.sum() == (len(noise) if model_name == "T5WithFusion" else 0), "not on each token of the text"


def searches_hyperparameters(model_name: str, lora: bool) -> None:
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    parts = {"model": None, "model_init": lambda trial: model_for(model_name, lora)}
    trainer = trainer_for(model_name, lora, parts=parts, eval_strategy="steps", eval_steps=4)
    space = {"learning_rate": [1e-9, 1e-2]}
    best = trainer.hyperparameter_search(
        lambda trial: {"learning_rate": trial.suggest_categorical("learning_rate", space["learning_rate"])},
        n_trials=2, backend="optuna", sampler=optuna.samplers.GridSampler(space),
    )  # fmt: skip
    assert best.hyperparameters == {"learning_rate": 1e-2}, f"the best is {best}"


def checkpoints_gradients(model_name: str, lora: bool) -> None:
    """Checkpointing does not change the losses."""
    step_losses = [
        train(
            trainer_for(model_name, lora, model_for(model_name, lora, dropout_rate=0.0), gradient_checkpointing=switch)
        )
        for switch in (False, True)
    ]
    np.testing.assert_allclose(*step_losses, rtol=1e-4)


def accumulates(model_name: str, lora: bool) -> None:
    """Four batches of two rows give the loss of one batch of eight. It is a mean over tokens, not over batches."""
    step_losses = []
    for rows in (8, 2):
        model = model_for(model_name, lora, dropout_rate=0.0)
        options = {"per_device_train_batch_size": rows, "gradient_accumulation_steps": 8 // rows}
        step_losses.append(train(trainer_for(model_name, lora, model, **options)))
    assert np.allclose(*step_losses, rtol=1e-3), (
        f"the first loss is {step_losses[1][0]:.4f}, and {step_losses[0][0]:.4f} in one batch"
    )


def seeds_data(model_name: str, lora: bool) -> None:
    batches = []
    for seed in (1, 2):
        trainer = trainer_for(model_name, lora, seed=seed, data_seed=5, per_device_train_batch_size=2)
        batches.append([batch["input_ids"] for batch in trainer.get_train_dataloader()])
    assert all(map(torch.equal, *batches)), "the order of the rows is another"
    train(trainer)


def maps_in_workers(model_name: str, lora: bool) -> None:
    """`Dataset.map` with two processes, from texts and vectors to rows."""
    names, numbers = texts(8), torch.Generator().manual_seed(0)
    raw = Dataset.from_dict({"name": names, "vector": torch.randn(8, DIM, generator=numbers).tolist()})
    if model_name == "T5WithFusion":
        processor = T5FusionProcessor(tokenizer(), lexical_encoder=None, lexical_source="given")

        def make(batch):
            options = {"lexical_embeds": batch["vector"], "text_target": batch["name"], "return_tensors": None}
            return processor(batch["name"], **options)
    else:
        plain = tokenizer()

        def make(batch):
            return plain(batch["name"], text_target=batch["name"])

    rows = raw.map(make, batched=True, num_proc=2, remove_columns=["name", "vector"])
    assert set(rows.column_names) <= {"input_ids", "attention_mask", "labels", "lexical_embeds"}
    train(trainer_for(model_name, lora, rows=rows, remove_unused_columns=False))


def reads_checkpoints(model_name: str, lora: bool) -> None:
    """`from_pretrained` of the class, or of PEFT, reloads what `save_model` saved bit for bit, and the tokenizer."""
    trainer = trainer_for(model_name, lora)
    train(trainer)
    trainer.save_model()
    base = load(model_name, None if lora else trainer.args.output_dir)
    if lora:
        base.load_adapter(trainer.args.output_dir)
    batch = batch_for(model_name)
    assert torch.equal(logits_of(base, batch), logits_of(trainer.model, batch)), "the reloaded model is another"
    saved = AutoTokenizer.from_pretrained(trainer.args.output_dir)
    assert saved.get_vocab() == trainer.data_collator.tokenizer.get_vocab()


def quantised(model_name: str) -> torch.nn.Module:
    config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")
    return prepare_model_for_kbit_training(load(model_name, quantization_config=config))


def trains_quantised(model_name: str, lora: bool) -> None:
    trainer = trainer_for(model_name, lora, model_for(model_name, lora, quantised(model_name)))
    before = loss_now(trainer_for(model_name, lora, model_for(model_name, lora, quantised(model_name))))
    trainer.train()
    assert loss_now(trainer) < before, "the loss does not fall"


def trains_quantised_after_evaluation(model_name: str, lora: bool) -> None:
    train(trainer_for(model_name, lora, model_for(model_name, lora, quantised(model_name))))


# Pushing to a Hub on the loopback interface. The reader cannot import this package.

READ = """
import sys, torch
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer
batch, expected = torch.load(sys.argv[1])
model = {}.from_pretrained("me/pushed", trust_remote_code=True)
for parameter in model.parameters():
    parameter.data = parameter.data.clone()
with torch.no_grad():
    found = model.eval()(**batch).logits
assert torch.equal(found, expected), "logits lie %.2g apart" % (found - expected).abs().max()
assert ("<lexical>" in AutoTokenizer.from_pretrained("me/pushed").get_vocab()) == ("lexical_embeds" in batch)
"""


def pushes(model_name: str, lora: bool, by="trainer", base="google/flan-tiny", reader=("AutoModelForSeq2SeqLM", "")):
    """Push and read back.

    Args:
        by: Code that pushes.
        reader: The class that reads, and the code that provides it if it is not part of transformers.
    """
    home = Path(mkdtemp(dir=KEPT.name))
    load("T5WithFusion").save_pretrained(home / "base")
    tokenizer().save_pretrained(home / "base")
    with HubServer(tokens={"hf_owner": "me"}) as hub:
        hub.add_folder("google/flan-tiny", plain_folder())
        hub.add_folder("me/fused", home / "base")
        arguments = (model_name, lora, by, base, str(home / "made.pt"))
        train_it = f"from compat.trainer import push; push{arguments}"
        run(train_it, environment=hub.environment(home / "author", "hf_owner"))
        kind, imports = reader
        read = (imports or HIDE_THE_PACKAGE) + READ.format(kind)
        run(read, home / "made.pt", environment=hub.environment(home / "reader"))


def pushes_onto_its_base(model_name: str, lora: bool) -> None:
    """Push an adapter on a pushed base model. For the fused model, `t5fusion export --kind fused` makes it."""
    pushes(model_name, lora, base="me/fused")


def pushes_by_peft(model_name: str, lora: bool) -> None:
    pushes(model_name, lora, by="peft")


def uploads_and_reads_by_name(model_name: str, lora: bool) -> None:
    pushes(model_name, lora, by="hf", reader=("T5WithFusion", "from t5fusion import T5WithFusion"))


def push(model_name: str, lora: bool, by: str, base: str, made: str) -> None:
    torch.set_num_threads(1)
    model = model_for(model_name, lora, CLASSES[model_name].from_pretrained(base))
    options = {"push_to_hub": True, "hub_model_id": "me/pushed", "save_strategy": "steps", "save_steps": 4}
    trainer = trainer_for(model_name, lora, model, **options if by == "trainer" else {})
    train(trainer)
    if by == "trainer":
        trainer.push_to_hub()
    elif by == "peft":
        model.push_to_hub("me/pushed")
        trainer.data_collator.tokenizer.push_to_hub("me/pushed")
    else:
        trainer.save_model()
        create_repo("me/pushed")
        upload_folder(repo_id="me/pushed", folder_path=trainer.args.output_dir)
    batch = {name: value for name, value in batch_for(model_name).items() if name != "labels"}
    batch["decoder_input_ids"] = torch.tensor([[0, 5, 9]] * 2)
    for parameter in model.parameters():
        parameter.data = parameter.data.clone()
    with torch.no_grad():
        torch.save((batch, model.eval()(**batch).logits), made)


def run(code: str, *arguments, environment: dict[str, str]) -> None:
    """Run code in its own process. If it fails, raise the last line as an error."""
    done = subprocess.run(
        [warm_python(), "-W", "ignore", "-c", code, *map(str, arguments)],
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": TESTS} | environment,
        stdin=subprocess.DEVNULL, capture_output=True, text=True,
    )  # fmt: skip
    if done.returncode:
        raise as_error(done.stderr.strip().splitlines()[-1])


CHECKS: dict[str, Callable] = {
    "trains": trains,
    "rows without vectors among others": trains_rows_without_vectors,
    "`predict_with_generate`, `compute_metrics`, beams": predicts_with_generate,
    "`Trainer.predict`, `eval_accumulation_steps`": predicts,
    "`train_sampling_strategy='group_by_length'`": sampling("group_by_length"),
    "`train_sampling_strategy='batch_rebalance'`": sampling("batch_rebalance"),
    "`train_sampling_strategy='sequential'`": sampling("sequential"),
    "`auto_find_batch_size`": finds_a_batch_size,
    "label smoothing, the collator with `model=`": smooths_labels,
    "label smoothing, the collator without": smooths_labels_without_a_model,
    "resume": resumes,
    "`load_best_model_at_end`, early stopping": loads_best_and_stops_early,
    "`neftune_noise_alpha`": noise_reaches_text,
    "hyperparameter search by optuna": searches_hyperparameters,
    "`gradient_checkpointing`": checkpoints_gradients,
    "`gradient_accumulation_steps`": accumulates,
    "`bf16`": trains_with(bf16=True),
    "`torch_compile`": trains_with(torch_compile=True),
    "`optim='adafactor'`": trains_with(optim="adafactor"),
    "`remove_unused_columns=False`": trains_with(remove_unused_columns=False),
    "`dataloader_num_workers=2`": trains_with(dataloader_num_workers=2),
    "`data_seed`": seeds_data,
    "`Dataset.map` with `num_proc=2`": maps_in_workers,
    "`save_model`, `from_pretrained`": reads_checkpoints,
}
ON_LORA = {
    "nf4 base, `prepare_model_for_kbit_training`": trains_quantised,
    "nf4 base, evaluated before it trains": trains_quantised_after_evaluation,
}


def make() -> Table:
    table = Table(
        "Trainer",
        "The checks run `Seq2SeqTrainer` with `DataCollatorWithFusion` on rows with vectors; on the plain T5, with "
        "`DataCollatorForSeq2Seq`. *works* means, among other things, that the loss falls and the fusion layer "
        "changes. If a check pushes, a new process then loads the result in one line, and the outputs are equal bit "
        "for bit. Only in the last row, this package is installed there.",
        ["all weights", "LoRA on top"],
    )
    for row, check in CHECKS.items():
        for column, lora in (("all weights", False), ("LoRA on top", True)):
            table.add(row, column, check, lora)
    for row, check in ON_LORA.items():
        table.add(row, "LoRA on top", check, True)
    table.add("`push_to_hub=True`", "all weights", pushes, False)
    table.add("`push_to_hub=True`", "LoRA on top", pushes, True)
    fused = ("T5WithFusion",)
    table.add("`push_to_hub=True`, on a fused base of the Hub", "LoRA on top", pushes_onto_its_base, True, models=fused)
    table.add("`PeftModel.push_to_hub`", "LoRA on top", pushes_by_peft, True)
    by_name = "the saved folder, uploaded as it is, read by `T5WithFusion.from_pretrained`"
    table.add(by_name, "LoRA on top", uploads_and_reads_by_name, True, models=fused)
    return table
