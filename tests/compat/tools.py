"""Tools: other uses of a T5 with torch, accelerate, datasets and the Hub."""

import copy
import json
import os
import pickle
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from contextlib import chdir
from pathlib import Path
from tempfile import TemporaryDirectory
from urllib.request import Request, urlopen

import numpy as np
import torch
import transformers
from accelerate import cpu_offload, disk_offload, infer_auto_device_map
from datasets import Dataset
from forks import free_port
from hub_server import HubServer
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_model, save_model
from shared_fixtures import make_tokenizer
from torch._dynamo.testing import CompileCounter
from torch.utils.data import DataLoader
from transformers import AutoConfig, AutoModelForSeq2SeqLM, pipeline

from t5fusion import DataCollatorWithFusion, T5FusionProcessor

from .models import CLASSES, batch_for, load, logits_of, plain_folder
from .table import MODELS, Table, as_error

FUSED = ("T5WithFusion",)
SHAPES = (((1, 2), (6, 3)), ((1, 1, 3), (9, 2, 4)), ((2, 0), (3, 3)), ((1, 1, 1, 1), (5, 5, 2, 8)))


def close(actual: torch.Tensor, expected: torch.Tensor, within: float = 1e-4) -> None:
    apart = (actual.float() - expected.float()).abs().max().item()
    assert apart <= within, f"the logits lie {apart:.2g} apart"


def saved(model_name: str, folder: str, **options) -> str:
    load(model_name).save_pretrained(folder, **options)
    return folder


def same(model_name: str, model: torch.nn.Module) -> None:
    """The model computes the same as its source, bit for bit."""
    batch = batch_for(model_name)
    assert torch.equal(logits_of(model, batch), logits_of(load(model_name), batch)), "the logits differ"


# torch


class Logits(torch.nn.Module):
    """The model without a cache, because `torch.jit` does not know the cache's type."""

    def __init__(self, model: torch.nn.Module):
        super().__init__()
        self.model = model

    def forward(self, input_ids, attention_mask, labels, lexical_embeds=None):
        vectors = {} if lexical_embeds is None else {"lexical_embeds": lexical_embeds}
        return self.model(input_ids, attention_mask, labels=labels, use_cache=False, **vectors).logits


def compiles(model_name: str, **options) -> str:
    """Compile, run batches of several shapes, and return the number of graphs."""
    model, counter = load(model_name), CompileCounter()
    torch._dynamo.reset()
    compiled = torch.compile(model, backend=counter, **options)
    for vectors, lengths in SHAPES:
        batch = batch_for(model_name, vectors, lengths)
        with torch.no_grad():
            close(compiled(**batch).logits, model(**batch).logits)
    return f"{counter.frame_count} graphs for {len(SHAPES)} shapes"


def compiles_to_machine_code(model_name: str) -> None:
    model, batch = load(model_name), batch_for(model_name)
    torch._dynamo.reset()
    with torch.no_grad():
        close(torch.compile(model)(**batch).logits, model(**batch).logits)


def exports_encoder(model_name: str) -> None:
    model, batch = load(model_name), batch_for(model_name)
    inputs = {name: value for name, value in batch.items() if name != "labels"}
    names = {"batch": torch.export.Dim("batch", min=2), "length": torch.export.Dim("length", min=4, max=64)}
    dynamic = {name: {0: names["batch"]} | ({1: names["length"]} if "embeds" not in name else {}) for name in inputs}
    program = torch.export.export(model.encoder, (), inputs, dynamic_shapes=dynamic)
    other = {name: value for name, value in batch_for(model_name, (1, 2, 1), (9, 3, 2)).items() if name in inputs}
    for each in (inputs, other):
        close(program.module()(**each)[0], model.encoder(**each)[0])


def exports(model_name: str) -> None:
    model, batch = load(model_name), batch_for(model_name)
    program = torch.export.export(model, (), batch | {"use_cache": False})
    close(program.module()(**batch, use_cache=False).logits, model(**batch).logits)


def traces(model_name: str) -> None:
    model, batch = load(model_name), batch_for(model_name)
    traced = torch.jit.trace(Logits(model), example_kwarg_inputs=batch)
    close(traced(**batch), model(**batch).logits)


def checkpoints(model_name: str, reentrant: bool) -> None:
    model, batch = load(model_name, dropout_rate=0.0).train(), batch_for(model_name)
    model(**batch).loss.backward()
    expected = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    model(**batch).loss.backward()
    for name, gradient in expected.items():
        torch.testing.assert_close(model.get_parameter(name).grad, gradient, rtol=1e-4, atol=1e-5, msg=name)


def attends(model_name: str, implementation: str) -> None:
    with chdir(plain_folder().parent):  # A refusal then names no folder.
        model = load(model_name, plain_folder().name, attn_implementation=implementation)
    assert model.config._attn_implementation == implementation
    batch = batch_for(model_name)
    try:
        logits = logits_of(model, batch)
    except RuntimeError as error:  # from the code that torch generates for flex attention, which names its file
        raise RuntimeError(re.sub(r"/\S+/", "", str(error))) from error
    close(logits, logits_of(load(model_name, attn_implementation="eager"), batch))


def casts(model_name: str, dtype: torch.dtype) -> None:
    batch = batch_for(model_name)
    logits = logits_of(load(model_name).to(dtype), batch)
    assert logits.dtype == dtype
    expected = logits_of(load(model_name), batch)
    close(logits, expected, 0.05 * expected.abs().max().item())


def copies(model_name: str) -> None:
    same(model_name, copy.deepcopy(load(model_name)))


def pickles(model_name: str) -> None:
    same(model_name, pickle.loads(pickle.dumps(load(model_name))))


def saves_whole(model_name: str) -> None:
    with TemporaryDirectory() as folder:
        torch.save(load(model_name), f"{folder}/model.pt")
        same(model_name, torch.load(f"{folder}/model.pt", weights_only=False))


def saves_weights(model_name: str) -> None:
    with TemporaryDirectory() as folder:
        torch.save(load(model_name).state_dict(), f"{folder}/weights.pt")
        model = CLASSES[model_name](load(model_name).config)
        model.load_state_dict(torch.load(f"{folder}/weights.pt"))
    assert model.lm_head.weight is not model.shared.weight, "a head of its own is tied to the embeddings, and lost"
    same(model_name, model)


def saves_safetensors(model_name: str) -> None:
    with TemporaryDirectory() as folder:
        save_model(load(model_name), f"{folder}/model.safetensors")
        model = copy.deepcopy(load(model_name))
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.zero_()
        load_model(model, f"{folder}/model.safetensors")
    same(model_name, model)


def calls_functionally(model_name: str) -> None:
    """Compute the gradients of each row by `torch.func`."""
    model, batch = load(model_name), batch_for(model_name)
    weights = dict(model.named_parameters())
    gradients = torch.func.grad(lambda given: torch.func.functional_call(model, given, kwargs=batch).loss)(weights)
    model(**batch).loss.backward()
    close(gradients["shared.weight"], model.shared.weight.grad)


def runs_distributed(model_name: str) -> None:
    model, batch = load(model_name), batch_for(model_name)
    with TemporaryDirectory() as folder:
        torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=0, world_size=1)
        try:
            parallel = torch.nn.parallel.DistributedDataParallel(model)
            for _ in range(2):
                parallel(**batch).loss.backward()
        finally:
            torch.distributed.destroy_process_group()


# transformers, accelerate and PEFT


def generates_with_a_static_cache(model_name: str) -> None:
    model, batch = load(model_name), batch_for(model_name)
    del batch["labels"]
    options = {"max_new_tokens": 6, "min_new_tokens": 6}
    generated = model.generate(**batch, **options, cache_implementation="static")
    assert torch.equal(generated, model.generate(**batch, **options)), "other tokens"


def maps_to_devices(model_name: str) -> None:
    """Load into a third of the needed memory, and put the rest on the disk."""
    with TemporaryDirectory() as folder:
        saved(model_name, f"{folder}/model")
        total = sum(p.numel() * p.element_size() for p in load(model_name).parameters())
        memory = {"cpu": total // 3}
        mapped = load(
            model_name, f"{folder}/model", device_map="auto", max_memory=memory, offload_folder=f"{folder}/off"
        )
        assert "disk" in mapped.hf_device_map.values(), "nothing is offloaded"
        batch = batch_for(model_name)
        with torch.no_grad():
            logits = mapped(**batch).logits
            tokens = mapped.generate(**{name: value for name, value in batch.items() if name != "labels"})
    with torch.no_grad():
        close(logits, load(model_name)(**batch).logits)
    del batch["labels"]
    assert torch.equal(tokens, load(model_name).generate(**batch)), "other tokens"


def offloads(model_name: str, to_disk: bool) -> None:
    model, batch = load(model_name), batch_for(model_name)
    with torch.no_grad():
        expected = model(**batch).logits
        with TemporaryDirectory() as folder:
            disk_offload(model, folder, torch.device("cpu")) if to_disk else cpu_offload(model, torch.device("cpu"))
            close(model(**batch).logits, expected)


def infers_a_device_map(model_name: str) -> None:
    """The device map splits no block and no fusion layer."""
    model = load(model_name)
    classes = model._no_split_modules
    assert classes
    total = sum(p.numel() * p.element_size() for p in model.parameters())
    devices = infer_auto_device_map(model, {"cpu": total // 2, "disk": 10**9}, no_split_module_classes=classes)
    assert {"cpu", "disk"} <= set(devices.values()), devices
    assert not any(".layer." in name for name in devices), "a block is taken apart"


def saves_in_pieces(model_name: str) -> None:
    with TemporaryDirectory() as folder:
        saved(model_name, folder, max_shard_size="100KB")
        assert len(list(Path(folder).glob("model-*.safetensors"))) > 1
        same(model_name, load(model_name, folder))


def saves_a_state_dict(model_name: str) -> None:
    weights = {name: value * 2 for name, value in load(model_name).state_dict().items()}
    with TemporaryDirectory() as folder:
        saved(model_name, folder, state_dict=weights)
        reloaded = load(model_name, folder).state_dict()
    assert all(torch.equal(reloaded[name], value) for name, value in weights.items())


def opens_from_config(model_name: str) -> None:
    with TemporaryDirectory() as folder:
        config = AutoConfig.from_pretrained(saved(model_name, folder))
    model = AutoModelForSeq2SeqLM.from_config(config)
    assert type(model) is CLASSES[model_name] and model(**batch_for(model_name)).loss.isfinite()


def loads_an_adapter_sparingly(model_name: str) -> None:
    model, batch = load(model_name), batch_for(model_name)
    config = model.lora_config() if model_name in FUSED else LoraConfig(task_type="SEQ_2_SEQ_LM")
    peft_model = get_peft_model(model, config)
    with torch.no_grad():
        for parameter in peft_model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1)
    with TemporaryDirectory() as folder:
        peft_model.save_pretrained(folder)
        reloaded = PeftModel.from_pretrained(load(model_name), folder, low_cpu_mem_usage=True)
    assert torch.equal(logits_of(reloaded, batch), logits_of(peft_model, batch)), "the logits differ"


def writes_in_a_pipeline(model_name: str) -> None:
    model, tokenizer = load(model_name), make_tokenizer()
    processor = T5FusionProcessor(tokenizer, None, lexical_source="given")
    vectors = {"lexical_embeds": torch.full((1, 384), 0.05)} if model_name in FUSED else {}
    options = {"max_new_tokens": 9, "do_sample": False, "suppress_tokens": [0, 1, 2, 3, *range(30, 160)]}  # letters
    text = "<lexical>app" if vectors else "app"
    written = pipeline("text-generation", model, tokenizer=tokenizer)(
        text, **vectors, **options, return_full_text=False
    )
    inputs = processor("app", **vectors) if vectors else tokenizer("app", return_tensors="pt")
    expected = tokenizer.decode(model.generate(**inputs, **options)[0], skip_special_tokens=True)
    assert written[0]["generated_text"].strip() == expected, f"{written[0]['generated_text']!r} for {expected!r}"


def takes_anything_in_a_pipeline(model_name: str) -> None:
    pipeline("any-to-any", load(model_name), processor=make_processor())(text="app", images=None)


# Data


def make_processor() -> T5FusionProcessor:
    return T5FusionProcessor(make_tokenizer(), None, lexical_dim=8, lexical_source="given")


def make_rows() -> list[dict]:
    vectors = np.random.default_rng(0).normal(size=(8, 8)).astype(np.float32)
    return [{"text": f"app {'abcdefgh'[i]}", "vector": vector.tolist()} for i, vector in enumerate(vectors)]


class Process:
    """Make rows for the collator from a batch of a data set."""

    def __init__(self):
        self.processor = make_processor()

    def __call__(self, rows: dict) -> dict:
        vectors = np.asarray(rows["vector"], np.float32)
        return dict(self.processor(rows["text"], lexical_embeds=vectors, return_tensors=None))


def maps_with_workers(model_name: str) -> None:
    rows = Dataset.from_list(make_rows())
    options = {"batched": True, "remove_columns": ["text", "vector"], "load_from_cache_file": False}
    processed = rows.map(Process(), num_proc=2, **options)
    assert processed.to_list() == rows.map(Process(), **options).to_list()


def loads_with_workers(model_name: str, start: str) -> None:
    rows = Dataset.from_list(make_rows()).map(Process(), batched=True, remove_columns=["text", "vector"])
    collator = DataCollatorWithFusion(make_tokenizer())
    options = {"batch_size": 4, "collate_fn": collator}
    workers = DataLoader(rows.to_list(), num_workers=1, multiprocessing_context=start, **options)
    for batch, expected in zip(workers, DataLoader(rows.to_list(), **options), strict=True):
        assert all(torch.equal(batch[name], value) for name, value in expected.items())


# The Hub


PUSH_AND_OPEN = """
import sys
from compat.models import CLASSES, load
from compat.tools import make_processor
model_name = sys.argv[1]
model = load(model_name, sys.argv[2])
model.push_to_hub("me/model")
if model_name == "T5WithFusion":
    make_processor().push_to_hub("me/model")
    from transformers import AutoProcessor
    assert AutoProcessor.from_pretrained("me/model", trust_remote_code=True)("a", lexical_embeds=[0.1] * 8)
again = CLASSES[model_name].from_pretrained("me/model").state_dict()
assert all(value.equal(again[name]) for name, value in model.state_dict().items())
"""
OPEN = """
import sys
from compat.models import load
found, expected = (load(sys.argv[1], folder).state_dict() for folder in sys.argv[2:])
assert all(value.equal(found[name]) for name, value in expected.items())
"""


def pushes_and_downloads(model_name: str, download: bool) -> None:
    """Push with `push_to_hub` and load from the Hub, or from a folder that `hf download` filled."""
    with HubServer(tokens={"hf_owner": "me"}) as hub, TemporaryDirectory() as folder:
        saved(model_name, f"{folder}/model")
        environment = os.environ | hub.environment(Path(folder), "hf_owner") | {"HF_HUB_OFFLINE": "0"}
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, sys.path))
        python = [sys.executable, "-c"]
        commands = [[*python, PUSH_AND_OPEN, model_name, f"{folder}/model"]]
        if download:
            files = {path.name: path.read_bytes() for path in Path(folder, "model").iterdir() if path.is_file()}
            hub.add_repo("me/model", files)
            hf = str(Path(sys.executable).with_name("hf"))
            commands = [
                [hf, "download", "me/model", "--local-dir", f"{folder}/local"],
                [*python, OPEN, model_name, f"{folder}/local", f"{folder}/model"],
            ]
        for command in commands:
            done = subprocess.run(command, env=environment, capture_output=True, text=True)
            if done.returncode:
                raise as_error(done.stderr.strip().splitlines()[-1])


# Tools of further packages


def answers_in_gradio(model_name: str) -> None:
    """Send a text and a vector to a gradio `Interface` over the loopback interface."""
    import gradio
    from gradio_client import Client

    model, tokenizer, dim = load(model_name), make_tokenizer(), 384
    processor = T5FusionProcessor(make_tokenizer(), None, lexical_source="given")

    def answer(text: str, numbers: str) -> str:
        vector = [float(number) for number in numbers.split()]
        inputs = processor(text, lexical_embeds=vector) if model_name in FUSED else tokenizer(text, return_tensors="pt")
        return tokenizer.decode(model.generate(**inputs, max_new_tokens=4)[0])

    typed = ("app", " ".join(["0.05"] * dim))
    page = gradio.Interface(answer, ["text", "text"], "text", api_name="answer")
    page.launch(prevent_thread_lock=True, quiet=True)
    try:
        answered = Client(page.local_url, verbose=False).predict(*typed, api_name="/answer")
    finally:
        page.close()
    assert answered == answer(*typed)


def serves(model_name: str, chat: bool) -> None:
    """Ask a question to `transformers serve` with a saved folder, over the loopback interface."""
    model, tokenizer = load(model_name), make_tokenizer()
    model.generation_config.update(suppress_tokens=[0, 1, 2, 3, *range(30, 160)])  # letters
    asked = {"messages": [{"role": "user", "content": "app"}]} if chat else {"prompt": "app"}
    with TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        (T5FusionProcessor(tokenizer, None) if model_name in FUSED else tokenizer).save_pretrained(folder)
        body = {"model": folder, "temperature": 0, "max_tokens": 9} | asked
        served = ask_server(folder, f"/v1/{'chat/' if chat else ''}completions", body)["choices"][0]["text"]
    inputs = tokenizer("app", return_tensors="pt")
    expected = tokenizer.decode(model.generate(**inputs, max_new_tokens=9)[0], skip_special_tokens=True)
    assert served == expected, f"{served!r} for {expected!r}"


def ask_server(folder: str, path: str, body: dict) -> dict:
    """Return the answer of `transformers serve` to a request, or the last error that it printed."""
    port = free_port()
    command = [Path(sys.executable).with_name("transformers"), "serve", folder, "--trust-remote-code"]
    command += ["--device", "cpu", "--host", "127.0.0.1", "--port", port]
    url, log = f"http://127.0.0.1:{port}", Path(folder, "log")
    with log.open("w") as file:
        server = subprocess.Popen(command, env=os.environ | {"HF_HOME": folder}, stdout=file, stderr=file)
    try:
        while server.poll() is None and not answers(f"{url}/health"):
            time.sleep(0.2)
        request = Request(url + path, json.dumps(body).encode(), {"Content-Type": "application/json"})
        with urlopen(request) as answer:
            return json.load(answer)
    except OSError as error:
        server.terminate()
        server.wait()  # It prints after it has answered.
        printed = [line for line in log.read_text().splitlines() if "Error: " in line]
        raise as_error(printed[-1]) from error
    finally:
        server.terminate()
        server.wait()


def answers(url: str) -> bool:
    try:
        return urlopen(url).status == 200
    except OSError:
        return False


def is_exported_by_optimum(model_name: str) -> None:
    """Check whether the exporter's package can be installed beside this transformers."""
    pip = [sys.executable, "-m", "pip", "install", "--dry-run", "--quiet", "optimum-onnx"]
    done = subprocess.run([*pip, f"transformers=={transformers.__version__}"], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(next(line for line in done.stderr.splitlines() if line.startswith("ERROR: ")))


def trains_with_trl(model_name: str) -> None:
    from trl import SFTConfig, SFTTrainer

    rows = Dataset.from_list([{"prompt": "app", "completion": "a b"}] * 4)
    with TemporaryDirectory() as folder:
        arguments = SFTConfig(folder, max_steps=1, report_to=[], use_cpu=True, bf16=False, disable_tqdm=True)
        SFTTrainer(load(model_name), arguments, train_dataset=rows, processing_class=make_tokenizer()).train()


CHECKS: dict[str, tuple[Callable, tuple, Iterable[str]]] = {
    "`torch.compile`, of four shapes": (compiles, (), MODELS),
    "`torch.compile`, `fullgraph=True`": (lambda model: compiles(model, fullgraph=True), (), MODELS),
    "`torch.compile`, `dynamic=True`": (lambda model: compiles(model, dynamic=True), (), MODELS),
    "`torch.compile`, inductor": (compiles_to_machine_code, (), MODELS),
    "`torch.export` of the encoder, of any length": (exports_encoder, (), MODELS),
    "`torch.export` of the model": (exports, (), MODELS),
    "`torch.jit.trace`": (traces, (), MODELS),
    "gradient checkpointing": (checkpoints, (False,), MODELS),
    "gradient checkpointing, reentrant": (checkpoints, (True,), MODELS),
    "attention: `eager`": (attends, ("eager",), MODELS),
    "attention: `sdpa`": (attends, ("sdpa",), MODELS),
    "attention: `flex_attention`": (attends, ("flex_attention",), MODELS),
    "attention: `flash_attention_2`": (attends, ("flash_attention_2",), MODELS),
    "`.half()`": (casts, (torch.float16,), MODELS),
    "`.to(torch.bfloat16)`": (casts, (torch.bfloat16,), MODELS),
    "`copy.deepcopy`": (copies, (), MODELS),
    "`pickle`": (pickles, (), MODELS),
    "`torch.save` of the model": (saves_whole, (), MODELS),
    "`torch.save` of its weights": (saves_weights, (), MODELS),
    "safetensors: `save_model`, `load_model`": (saves_safetensors, (), MODELS),
    "`torch.func`": (calls_functionally, (), MODELS),
    "`DistributedDataParallel`, one process": (runs_distributed, (), MODELS),
    "`generate`: static cache": (generates_with_a_static_cache, (), MODELS),
    "`device_map='auto'`, the rest on the disk": (maps_to_devices, (), MODELS),
    "accelerate: `cpu_offload`": (offloads, (False,), MODELS),
    "accelerate: `disk_offload`": (offloads, (True,), MODELS),
    "accelerate: `infer_auto_device_map`": (infers_a_device_map, (), MODELS),
    "`save_pretrained`: `max_shard_size`": (saves_in_pieces, (), MODELS),
    "`save_pretrained`: `state_dict`": (saves_a_state_dict, (), MODELS),
    "`AutoModelForSeq2SeqLM.from_config`": (opens_from_config, (), MODELS),
    "`PeftModel.from_pretrained`: `low_cpu_mem_usage`": (loads_an_adapter_sparingly, (), MODELS),
    "`pipeline('text-generation')`": (writes_in_a_pipeline, (), MODELS),
    "`pipeline('any-to-any')`": (takes_anything_in_a_pipeline, (), FUSED),
    "`Dataset.map`, processor, two workers": (maps_with_workers, (), FUSED),
    "`DataLoader`, collator, worker by spawn": (loads_with_workers, ("spawn",), FUSED),
    "`DataLoader`, collator, worker by fork": (loads_with_workers, ("fork",), FUSED),
    "`push_to_hub` and back": (pushes_and_downloads, (False,), MODELS),
    "`hf download`, and the model from there": (pushes_and_downloads, (True,), MODELS),
    "Gradio: an `Interface` and its client": (answers_in_gradio, (), MODELS),
    "TRL: `SFTTrainer`": (trains_with_trl, (), MODELS),
    "`transformers serve`: completions": (serves, (False,), MODELS),
    "`transformers serve`: what `transformers chat` asks": (serves, (True,), MODELS),
    "optimum-onnx, beside this transformers": (is_exported_by_optimum, (), MODELS),
}


def make() -> Table:
    table = Table(
        "Tools",
        "These are other tools that people use with a T5. Each check compares the numbers with those of the same model "
        "without the tool: bit for bit, unless the tool computes in a different way.",
        ["outcome"],
    )
    for row, (check, arguments, models) in CHECKS.items():
        table.add(row, "outcome", check, *arguments, models=models)
    return table
