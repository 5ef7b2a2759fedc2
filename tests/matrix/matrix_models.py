"""The models that matrix.py tries: small ones of every kind, pushed to a Hub, and where readers may load them from.

What it imports looks for a Hub as soon as it is imported: the environment must name one by then.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
import transformers
from conftest import KINDS, save_plain
from hub_server import HubServer
from huggingface_hub import HfApi
from peft import LoraConfig, TaskType, get_peft_model
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

from t5fusion import DataCollatorWithFusion, T5FusionProcessor, T5WithFusion
from t5fusion.hub_export.bundle import export
from t5fusion.hub_export.reference import REFERENCE, write_reference
from t5fusion.hub_export.upload import deliver
from t5fusion.naming_t5fusion import UNPUSHED_BASE


@dataclass(frozen=True)
class Model:
    """A repository whose main has moved on: `then` is the bundle that was pushed first, at `commit`, `now` the last."""

    name: str
    repo_id: str
    commit: str
    then: Path
    now: Path

    def specs(self) -> Iterator[tuple[str, dict]]:
        """Each place that a reader may load it from, and what reader_check.py needs to know of it."""
        yield "folder", self._spec(self.then, str(self.then))
        yield "Hub id at a revision", self._spec(self.then, self.repo_id, revision=self.commit)
        yield "Hub id", self._spec(self.now, self.repo_id)
        yield "Hub id, bf16", self._spec(self.now, self.repo_id, dtype="bfloat16", reference=str(bf16_of(self.now)))

    def _spec(self, bundle: Path, name: str, **others) -> dict:
        config = json.loads((bundle / "config.json").read_text())
        short, has_adapter = bundle.name.partition("-")[0], (bundle / "adapter_config.json").exists()
        other = bundle.parent / f"{short}-adapter-{'frozen' if 'trained' in bundle.name else 'trained'}"
        spec = {"name": name, "adapter": has_adapter, "reference": str(bundle / REFERENCE), "other": str(other)}
        spec |= {"unpushed_base": UNPUSHED_BASE}
        if "merged" not in bundle.name:
            spec |= {"backbone": config["backbone"], "backbone_revision": config["backbone_revision"]}
            spec |= {"base": f"me/{short}-base"}
        return spec | others


def bf16_of(bundle: Path) -> Path:
    """Where the reference in bf16 is, which no bundle carries."""
    return bundle.parent / "bf16" / bundle.name / REFERENCE


def make_models(hub: HubServer, work: Path) -> list[Model]:
    """Trains and exports all kinds of bundles on two backbones, and pushes each to a repository that then moves on."""
    bundles = work / "bundles"
    models = []
    for short, kind in (("flan", "flan"), ("t5", "v1.0")):
        backbone = f"google/{short}-tiny"
        hub.add_folder(backbone, save_plain(work / "plain" / short, **KINDS[kind]))
        export(backbone, bundles / f"{short}-base", "base")
        for fusion in ("trained", "frozen"):
            train(backbone, work / "trained" / f"{short}-{fusion}", fusion == "trained")
            for kind in ("adapter", "standalone", "merged"):
                export(work / "trained" / f"{short}-{fusion}", bundles / f"{short}-{kind}-{fusion}", kind)
        push(bundles / f"{short}-base", f"me/{short}-base")
        pairs = [("adapter-trained", "adapter-frozen"), ("adapter-frozen", "adapter-trained")]
        pairs += [(f"{kind}-trained", f"{kind}-frozen") for kind in ("standalone", "merged")]
        models += [publish(bundles / f"{short}-{then}", bundles / f"{short}-{now}") for then, now in pairs]
    models.append(publish(bundles / "flan-base", bundles / "t5-base"))
    models.append(publish(bundles / "flan-standalone-trained", bundles / "t5-standalone-frozen"))  # another backbone
    for now in {model.now for model in models}:
        write_bf16(now)
    return models


def train(backbone: str, out: Path, fusion: bool) -> None:
    """Some steps of LoRA, with the fusion layer or without it, and of another rank."""
    model, tokenizer = T5WithFusion(backbone), AutoTokenizer.from_pretrained(backbone)
    torch.manual_seed(0)
    plain = LoraConfig(r=4, target_modules=["q", "v"], task_type=TaskType.SEQ_2_SEQ_LM, modules_to_save=[])
    peft_model = get_peft_model(model, model.lora_config(r=8) if fusion else plain)
    row = {**tokenizer("app_config"), "labels": tokenizer("settings").input_ids, "lexical_embeds": [0.05] * 384}
    batch = DataCollatorWithFusion(tokenizer)([row, row])
    optimizer = torch.optim.AdamW([p for p in peft_model.parameters() if p.requires_grad], lr=0.1)
    for _ in range(3):
        peft_model(**batch).loss.backward()
        optimizer.step()
    peft_model.save_pretrained(out), tokenizer.save_pretrained(out)


def publish(then: Path, now: Path) -> Model:
    """Pushes both to one repository, so that its first commit and its main are different models."""
    short, _, name = then.name.partition("-")
    repo_id = f"me/{then.name}-then-{now.name}"
    commit = push(then, repo_id)
    push(now, repo_id)
    return Model(f"{short} {name} then {now.name}", repo_id, commit, then, now)


def push(bundle: Path, repo_id: str) -> str:
    """The commit. Not `push` as a whole, which first verifies: that is what will be done here, by all releases."""
    return deliver(HfApi(), bundle, repo_id, False, None, False, None, True, lambda line: None).commit


def write_bf16(bundle: Path) -> None:
    """The reference of a model that was loaded in bf16, as a bundle's own is of fp32.

    Early releases of transformers 5 keep a matrix of each block of T5 in fp32 all the same. So it says that it was made
    elsewhere, and doors.py allows what rounding can do.
    """
    file = bf16_of(bundle)
    file.parent.mkdir(parents=True)
    model = T5WithFusion(str(bundle), dtype=torch.bfloat16)
    write_reference(file.parent, model, T5FusionProcessor.from_pretrained(bundle))
    with safe_open(file, "pt") as opened:
        facts = json.loads(opened.metadata()["facts"])
    facts["environment"]["torch"] += f" and transformers {transformers.__version__}"
    save_file(load_file(file), file, metadata={"facts": json.dumps(facts)})
