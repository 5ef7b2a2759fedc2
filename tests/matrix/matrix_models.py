"""The models that matrix.py tries: small ones of every kind, pushed to a Hub, and where readers may load them from.

Import it after the environment names a Hub, because huggingface_hub reads its settings when it is imported.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
import transformers
from hub_server import HubServer
from huggingface_hub import HfApi
from peft import LoraConfig, TaskType, get_peft_model
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from shared_fixtures import KINDS, save_plain
from transformers import AutoTokenizer

from t5fusion import DataCollatorWithFusion, T5FusionProcessor, T5WithFusion, VectorKind
from t5fusion.hub_export.bundle import export
from t5fusion.hub_export.reference import REFERENCE, write_reference
from t5fusion.hub_export.upload import PushOptions, deliver
from t5fusion.naming_t5fusion import UNPUSHED_BASE

# The kinds of vectors of the models named "kinds": raw numbers and embeddings, one token and several, two projectors.
VECTORS = {
    "price": VectorKind(1, scale="log"),
    "image": VectorKind(7, tokens=4, projector="mlp", scale=None),
    "item": VectorKind(3, tokens=2),
}


@dataclass(frozen=True)
class Model:
    """A repository with two bundles: `then` was pushed first, at `commit`, and `now` is on main."""

    name: str
    repo_id: str
    commit: str
    then: Path
    now: Path

    def specs(self) -> Iterator[tuple[str, dict]]:
        """Yield each place that a reader may load it from, and the SPEC of reader_check.py for it."""
        yield "folder", self._spec(self.then, str(self.then))
        yield "Hub id at a revision", self._spec(self.then, self.repo_id, revision=self.commit)
        yield "Hub id", self._spec(self.now, self.repo_id)
        yield "Hub id, bf16", self._spec(self.now, self.repo_id, dtype="bfloat16", reference=str(bf16_of(self.now)))

    def _spec(self, bundle: Path, name: str, **others) -> dict:
        config = json.loads((bundle / "config.json").read_text())
        short, has_adapter = bundle.name.partition("-")[0], (bundle / "adapter_config.json").exists()
        other = bundle.parent / f"{short}-adapter-{'frozen' if 'trained' in bundle.name else 'trained'}"
        spec = {"name": name, "adapter": has_adapter, "pipeline": True, "reference": str(bundle / REFERENCE)}
        spec |= {"unpushed_base": UNPUSHED_BASE, "second_adapter": str(other)}
        if "merged" not in bundle.name:
            spec |= {"base_model": config["backbone"], "base_revision": config["backbone_revision"]}
            spec |= {"fused_model": f"me/{short}-fused"}
        return spec | others


def bf16_of(bundle: Path) -> Path:
    """Return where the reference in bf16 is. Bundles carry none."""
    return bundle.parent / "bf16" / bundle.name / REFERENCE


def make_models(hub: HubServer, work: Path) -> list[Model]:
    """Train and export all kinds of bundles on three base models, and push them in pairs, each to one repository."""
    bundles = work / "bundles"
    models = []
    for short, kind, vectors in (("flan", "flan", None), ("t5", "v1.0", None), ("kinds", "flan", VECTORS)):
        base_model = f"google/{short}-tiny"
        hub.add_folder(base_model, save_plain(work / "plain" / short, **KINDS[kind]))
        export(fused_source(base_model, work / "fused" / short, vectors), bundles / f"{short}-fused", "fused")
        for fusion in ("trained", "frozen"):
            train(base_model, work / "trained" / f"{short}-{fusion}", fusion == "trained", vectors)
            for kind in ("adapter", "standalone", "merged"):
                export(work / "trained" / f"{short}-{fusion}", bundles / f"{short}-{kind}-{fusion}", kind)
        push(bundles / f"{short}-fused", f"me/{short}-fused")
        pairs = [("adapter-trained", "adapter-frozen"), ("adapter-frozen", "adapter-trained")]
        pairs += [(f"{kind}-trained", f"{kind}-frozen") for kind in ("standalone", "merged")]
        models += [publish(bundles / f"{short}-{then}", bundles / f"{short}-{now}") for then, now in pairs]
    models.append(publish(bundles / "flan-fused", bundles / "t5-fused"))
    models.append(publish(bundles / "flan-standalone-trained", bundles / "t5-standalone-frozen"))  # another base model
    for now in {model.now for model in models}:
        write_bf16(now)
    return models


def fused_source(base_model: str, folder: Path, vectors: dict[str, VectorKind] | None) -> str | Path:
    """Return what to export as a fused model: the base model itself, or a folder with a model of kinds of vectors."""
    if vectors is None:
        return base_model
    T5WithFusion(base_model, vectors=vectors).save_pretrained(folder)
    processor_of(base_model, vectors).save_pretrained(folder)
    return folder


def processor_of(base_model: str, vectors: dict[str, VectorKind]) -> T5FusionProcessor:
    """Return a processor of vectors that are given with each call."""
    return T5FusionProcessor(base_model, vectors=vectors, lexical_encoder=None, lexical_source="given")


def train(base_model: str, out: Path, fusion: bool, vectors: dict[str, VectorKind] | None) -> None:
    """Train some steps of LoRA, with the fusion layer at rank 8, or without it at rank 4."""
    choices = {} if vectors is None else {"vectors": vectors}
    model, tokenizer = T5WithFusion(base_model, **choices), AutoTokenizer.from_pretrained(base_model)
    torch.manual_seed(0)
    plain = LoraConfig(r=4, target_modules=["q", "v"], task_type=TaskType.SEQ_2_SEQ_LM, modules_to_save=[])
    peft_model = get_peft_model(model, model.lora_config(r=8) if fusion else plain)
    saved, given = tokenizer, [0.05] * 384
    if vectors is not None:
        saved = processor_of(base_model, vectors)
        given = {name: (torch.arange(kind.dim) * 100 + 50.0).tolist() for name, kind in vectors.items()}
    row = {**tokenizer("app_config"), "labels": tokenizer("settings").input_ids, "lexical_embeds": given}
    if vectors is not None and fusion:
        numbers = {name: torch.tensor(vector) * 2 for name, vector in given.items()}
        model.fit_fusion([row, row | {"lexical_embeds": numbers}])  # so that the scales have numbers of their own
    batch = DataCollatorWithFusion(saved)([row, row])
    optimizer = torch.optim.AdamW([p for p in peft_model.parameters() if p.requires_grad], lr=0.1)
    for _ in range(3):
        peft_model(**batch).loss.backward()
        optimizer.step()
    peft_model.save_pretrained(out), saved.save_pretrained(out)


def publish(then: Path, now: Path) -> Model:
    """Push both to one repository, so that its first commit and its main are different models."""
    short, _, name = then.name.partition("-")
    repo_id = f"me/{then.name}-then-{now.name}"
    commit = push(then, repo_id)
    push(now, repo_id)
    return Model(f"{short} {name} then {now.name}", repo_id, commit, then, now)


def push(bundle: Path, repo_id: str) -> str:
    """Push without verifying, which all releases will do later, and return the commit."""
    return deliver(HfApi(), bundle, repo_id, PushOptions(delete_others=True), lambda line: None).commit


def write_bf16(bundle: Path) -> None:
    """Write a reference of the model loaded in bf16. A bundle's own reference is of fp32.

    Early releases of transformers 5 keep a matrix of each block of T5 in fp32 even so. Therefore the reference says
    that it was made elsewhere, and reader_check.py allows for rounding.
    """
    file = bf16_of(bundle)
    file.parent.mkdir(parents=True)
    model = T5WithFusion(str(bundle), dtype=torch.bfloat16)
    write_reference(file.parent, model, T5FusionProcessor.from_pretrained(bundle))
    with safe_open(file, "pt") as opened:
        facts = json.loads(opened.metadata()["facts"])
    facts["environment"]["torch"] += f" and transformers {transformers.__version__}"
    save_file(load_file(file), file, metadata={"facts": json.dumps(facts)})
