"""PEFT's tuners and the variants of LoRA. The list is read from PEFT, so that a new tuner becomes a row."""

import copy
import json
import typing
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, is_dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from peft import EvaConfig, LoftQConfig, LoraConfig, PeftModel, get_peft_model, initialize_lora_eva_weights
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from peft.tuners.lora.config import CordaConfig, LoraGAConfig
from peft.tuners.lora.loraga import preprocess_loraga
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.hotswap import hotswap_adapter

from .models import batch_for, in_another_process, load, logits_of
from .table import Table

TASKS = ("MULTITASK_PROMPT_TUNING", "POLY")  # These need the task of each row.
RATES = (1e-2, 1e-1, 1.0)  # A small vector needs another learning rate than a matrix.


@dataclass
class Tuner:
    """A configuration, and the steps that its authors document before and after wrapping the model."""

    config: type
    fields: dict = field(default_factory=dict)
    before: Callable = lambda model, config, batch: None
    after: Callable = lambda model, batch: None

    def make(self, **more):
        return self.config(**{"task_type": "SEQ_2_SEQ_LM"} | copy.deepcopy(self.fields) | more)

    def wrap(self, model_name: str, **more) -> tuple[PeftModel, dict[str, torch.Tensor]]:
        model, batch, config = load(model_name), batch_for(model_name), self.make(**more)
        torch.manual_seed(0)
        self.before(model, config, batch)
        peft_model = get_peft_model(model, config)
        self.after(peft_model, batch)
        return peft_model, batch


# required fields of configurations
NEEDED = {
    "ADALORA": {"total_step": 10, "tinit": 1, "tfinal": 1},
    "ADAPTION_PROMPT": {"adapter_len": 4, "adapter_layers": 1},
    "C3A": {"block_size": 16},
    "CARTRIDGE": {"num_virtual_tokens": 4},
    "CPT": {"cpt_token_ids": [5, 6, 7], "cpt_mask": [1, 1, 1], "cpt_tokens_type_mask": [1, 2, 3]},
    "FOURIERFT": {"n_frequency": 100},
    "MULTITASK_PROMPT_TUNING": {"num_virtual_tokens": 4, "num_tasks": 2, "num_ranks": 1},
    "OSF": {"target_modules": ["q", "v"]},
    "POLY": {"n_tasks": 2},
    "PREFIX_TUNING": {"num_virtual_tokens": 4},
    "PROMPT_TUNING": {"num_virtual_tokens": 4},
    "P_TUNING": {"num_virtual_tokens": 4, "encoder_hidden_size": 32},
    "TRAINABLE_TOKENS": {"token_indices": [5, 6]},
    "UNILORA": {"theta_d_length": 64},
    "VBLORA": {"num_vectors": 8, "vector_length": 16},
    "WAVEFT": {"n_frequency": 100},
}


# Parts of LoraConfig for a start, or for a router over trained adapters.
NO_VARIANTS = ("loftq_config", "eva_config", "corda_config", "lora_ga_config", "runtime_config", "arrow_config")
PARTS = {"use_bdlora": {"target_modules_bd_a": ["v"], "target_modules_bd_b": ["q"], "nblocks": 2}}


def tuners() -> Iterator[tuple[str, Tuner]]:
    for kind, config in PEFT_TYPE_TO_CONFIG_MAPPING.items():
        yield kind.value, Tuner(config, NEEDED.get(kind.value, {}))
        if kind.value == "LORA":
            yield from lora_variants()


def lora_variants() -> Iterator[tuple[str, Tuner]]:
    """Return each switch of LoraConfig, each of its starts, and each nested configuration."""
    hints = typing.get_type_hints(LoraConfig)
    for name, kind in hints.items():
        if name.startswith("use_") and kind is bool:
            yield f"LORA, {name}", Tuner(LoraConfig, {name: True})
    for start in leaves(hints["init_lora_weights"]):
        if isinstance(start, str):
            yield f"LORA, start {start.partition('[')[0]}", started(start.replace("[number of iters]", "4"))
    for name, kind in hints.items():
        parts = [part for part in leaves(kind) if is_dataclass(part)]
        if parts and name not in NO_VARIANTS:
            yield f"LORA, {name}", Tuner(LoraConfig, {name: parts[0](**PARTS.get(name, {}))})
    yield "LORA, start lora_ga", started("lora_ga")
    yield "LORA, lora_bias", Tuner(LoraConfig, {"lora_bias": True})
    yield "LORA, target_parameters", Tuner(LoraConfig, {"target_modules": [], "target_parameters": ["q.weight"]})
    yield "LORA, trainable_token_indices", Tuner(LoraConfig, {"trainable_token_indices": [5, 6]})
    yield "LORA, alora", Tuner(LoraConfig, {"alora_invocation_tokens": [1]})


def leaves(kind) -> Iterator:
    """Return the parts of a union and the values of a Literal."""
    if typing.get_origin(kind) is typing.Literal:
        yield from typing.get_args(kind)
    elif typing.get_args(kind):
        for part in typing.get_args(kind):
            yield from leaves(part)
    else:
        yield kind


def started(start: str) -> Tuner:
    """LoRA that starts from values computed from the weights or from data."""
    fields: dict = {"init_lora_weights": start, "target_modules": ["q", "v"]}
    if start == "eva":
        # At most as many components as a batch has tokens: PEFT would wait for more of them forever.
        fields |= {"r": 2, "eva_config": EvaConfig(rho=1.0, use_label_mask=False)}
        return Tuner(LoraConfig, fields, after=start_from_inputs)
    if start == "corda":
        fields["corda_config"] = CordaConfig(corda_method="kpm")
        return Tuner(LoraConfig, fields, before=covariances)
    if start == "lora_ga":
        fields["lora_ga_config"] = LoraGAConfig()
        return Tuner(LoraConfig, fields, before=gradients)
    if start == "loftq":
        fields["loftq_config"] = LoftQConfig(loftq_bits=4)
    return Tuner(LoraConfig, fields)


def start_from_inputs(peft_model, batch) -> None:
    # PEFT's own function would mask the decoder's inputs by the encoder's padding.
    def numbers(layer_input, model_input, layer_name):
        return layer_input[0].flatten(0, 1)

    more = {"prepare_model_inputs_fn": None, "prepare_layer_inputs_fn": numbers, "show_progress_bar": False}
    initialize_lora_eva_weights(peft_model, [batch] * 2, **more)


def covariances(model, config, batch) -> None:
    from peft.tuners.lora.corda import preprocess_corda  # It needs attrs, which peft does not require.

    def run_model():
        for row in range(len(batch["labels"])):  # It takes batches of one row.
            logits_of(model, {name: value[row : row + 1] for name, value in batch.items()})

    preprocess_corda(model, config, run_model)


def gradients(model, config, batch) -> None:
    def train_step():
        model.zero_grad()
        model(**batch).loss.backward()

    preprocess_loraga(model, config, train_step)


def train(peft_model: PeftModel, batch: dict[str, torch.Tensor], adapter: str = "default") -> None:
    """Train some steps of an adapter, at the first of `RATES` that lowers the loss."""
    parameters = [parameter for _, parameter in parameters_of(peft_model, adapter)]
    assert parameters, "nothing trains"
    start = [parameter.detach().clone() for parameter in parameters]
    for rate in RATES:
        with torch.no_grad():
            for parameter, value in zip(parameters, start, strict=True):
                parameter.copy_(value)
        optimizer = torch.optim.AdamW(parameters, lr=rate)
        losses = []
        for _ in range(6):
            losses.append(loss_of(peft_model, batch))
            losses[-1].backward()
            optimizer.step()
            optimizer.zero_grad()
        if min(losses[1:]) < losses[0] and all(torch.isfinite(loss) for loss in losses):
            return
    raise AssertionError(f"the loss goes {', '.join(f'{loss:.4f}' for loss in losses)}")


def parameters_of(peft_model: PeftModel, adapter: str) -> list[tuple[str, torch.nn.Parameter]]:
    """Return the trainable parameters, without those of other adapters (PEFT lets the prompts of all of them train)."""
    others = {"default", "other"} - {adapter}
    return [
        (name, parameter)
        for name, parameter in peft_model.named_parameters()
        if parameter.requires_grad and not others & set(name.split("."))
    ]


def loss_of(peft_model: PeftModel, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    torch.manual_seed(0)  # of dropout
    return peft_model.train()(**batch, **tasks_for(peft_model)).loss


def tasks_for(peft_model: PeftModel) -> dict[str, torch.Tensor]:
    return {"task_ids": torch.tensor([0, 1])} if peft_model.active_peft_config.peft_type in TASKS else {}


def logits(peft_model: PeftModel, batch: dict[str, torch.Tensor], **options) -> torch.Tensor:
    """Return the logits for given decoder inputs, or for labels if the tuner requires them."""
    options |= tasks_for(peft_model)
    if peft_model.active_peft_config.peft_type == "MULTITASK_PROMPT_TUNING":
        with torch.no_grad():
            return peft_model.eval()(**batch, **options).logits
    return logits_of(peft_model, batch, **options)


def trained(model_name: str, tuner: Tuner, **more) -> tuple[PeftModel, dict[str, torch.Tensor]]:
    peft_model, batch = tuner.wrap(model_name, **more)
    train(peft_model, batch)
    return peft_model, batch


def adapted(model_name: str, tuner: Tuner) -> set[str]:
    peft_model, _ = tuner.wrap(model_name)
    return {name for name, module in peft_model.named_modules() if isinstance(module, BaseTunerLayer)}


# The checks. Each takes "T5" or "T5WithFusion", and a tuner.


def same_targets(model_name: str, tuner: Tuner) -> None:
    targets = adapted(model_name, tuner)
    expected = targets if model_name == "T5" else adapted("T5", tuner)
    assert targets == expected, f"{sorted(targets ^ expected)[:3]}"


def trains(model_name: str, tuner: Tuner) -> None:
    peft_model, batch = trained(model_name, tuner)
    if model_name == "T5WithFusion":
        turned = batch | {"lexical_embeds": batch["lexical_embeds"].flip(-1)}
        assert not torch.equal(logits(peft_model, batch), logits(peft_model, turned)), "the vectors have no effect"


def trains_fusion_too(model_name: str, tuner: Tuner) -> None:
    """The fusion layer trains without being named. The plain T5 trains its head, which is named."""
    whole, weight = ("fusion", "projection.weight") if model_name == "T5WithFusion" else ("lm_head", "weight")
    named = {} if model_name == "T5WithFusion" else {"modules_to_save": [whole]}
    peft_model, batch = trained(model_name, tuner, **named)
    config = peft_model.active_peft_config
    if not hasattr(config, "modules_to_save"):  # Such an adapter cannot hold a layer.
        raise TypeError(f"{type(config).__name__} has no `modules_to_save`")
    before = dict(load(model_name).named_parameters())
    (name,) = (name for name in before if name.endswith(f"{whole}.{weight}"))
    copies = [value for key, value in peft_model.named_parameters() if key.endswith(f"default.{weight}")]
    copies = [value for value in copies if value.shape == before[name].shape]
    assert copies and not any(torch.equal(value, before[name]) for value in copies), f"{whole} stays"
    saves_and_reloads(model_name, tuner, peft_model, batch)


def saves_and_reloads(model_name: str, tuner: Tuner, peft_model=None, batch=None) -> None:
    if peft_model is None:
        peft_model, batch = trained(model_name, tuner)
    with TemporaryDirectory() as folder:
        peft_model.save_pretrained(folder)
        reloaded = in_another_process(reloaded_logits, model_name, folder, batch)
    apart = (torch.from_numpy(reloaded) - logits(peft_model, batch)).abs().max().item()
    assert apart == 0, f"logits lie {apart:.2g} apart"


def reloaded_logits(model_name: str, folder: str, batch):
    torch.set_num_threads(1)
    return logits(PeftModel.from_pretrained(load_base_of(model_name, folder), folder), batch).numpy()


def load_base_of(model_name: str, folder: str):
    name = json.loads((Path(folder) / "adapter_config.json").read_text())["base_model_name_or_path"]
    return load(model_name, name)


def disabled(model_name: str, tuner: Tuner) -> None:
    peft_model, batch = trained(model_name, tuner)
    with peft_model.disable_adapter():
        without_adapter = logits(peft_model, batch)
    assert torch.equal(without_adapter, logits_of(load(model_name), batch)), (
        "with the adapter disabled, the outputs differ from those of the base model"
    )


def alone(tuner: Tuner) -> dict:
    """Return the option that keeps the fusion layer frozen.

    PEFT combines adapters only if they share no `modules_to_save`.
    """
    return {"modules_to_save": []} if "modules_to_save" in tuner.config.__dataclass_fields__ else {}


def two_adapters(model_name: str, tuner: Tuner, **more) -> tuple[PeftModel, dict, torch.Tensor, torch.Tensor]:
    """Return a model with two different adapters, "default" and "other", and the logits of each alone."""
    peft_model, batch = trained(model_name, tuner, **more)
    first = logits(peft_model, batch)
    torch.manual_seed(1)
    peft_model.add_adapter("other", tuner.make(**more))
    peft_model.set_adapter("other")
    train(peft_model, batch, "other")
    with torch.no_grad():  # It then differs from the first one.
        for _, parameter in parameters_of(peft_model, "other"):
            parameter.mul_(1.5)
    second = logits(peft_model, batch)
    assert not torch.equal(first, second), "both adapters do the same"
    return peft_model, batch, first, second


def switches(model_name: str, tuner: Tuner) -> None:
    peft_model, batch, first, second = two_adapters(model_name, tuner)
    for name, expected in (("default", first), ("other", second)):
        peft_model.set_adapter(name)
        assert torch.equal(logits(peft_model, batch), expected), (
            f"the adapter `{name}` gives other outputs after switching"
        )


def mixed_batch(model_name: str, tuner: Tuner) -> None:
    peft_model, batch, first, second = two_adapters(model_name, tuner, **alone(tuner))
    mixed = logits(peft_model, batch, adapter_names=["default", "other"])
    torch.testing.assert_close(mixed, torch.stack([first[0], second[1]]), rtol=1e-4, atol=1e-4)


def merges(model_name: str, tuner: Tuner) -> None:
    peft_model, batch = trained(model_name, tuner)
    expected = logits(peft_model, batch)
    torch.testing.assert_close(logits_of(peft_model.merge_and_unload(), batch), expected, rtol=1e-3, atol=1e-3)


def weighs(model_name: str, tuner: Tuner) -> None:
    peft_model, batch, first, second = two_adapters(model_name, tuner, **alone(tuner))
    peft_model.add_weighted_adapter(["default", "other"], [0.5, 0.5], "both", combination_type="linear")
    peft_model.set_adapter("both")
    weighted = logits(peft_model, batch)
    assert weighted.isfinite().all() and not torch.equal(weighted, first) and not torch.equal(weighted, second)


def hotswaps(model_name: str, tuner: Tuner) -> None:
    peft_model, batch, _, second = two_adapters(model_name, tuner, **alone(tuner))
    with TemporaryDirectory() as folder:
        peft_model.save_pretrained(folder, selected_adapters=["other"])
        peft_model.set_adapter("default")
        hotswap_adapter(peft_model, f"{folder}/other", "default")
    assert torch.equal(logits(peft_model, batch), second), "it is not the adapter that was swapped in"


def generates(model_name: str, tuner: Tuner) -> None:
    peft_model, batch = trained(model_name, tuner)
    batch = {name: value for name, value in batch.items() if name != "labels"} | tasks_for(peft_model)
    options = {"max_new_tokens": 3, "output_logits": True, "return_dict_in_generate": True}
    generated = peft_model.eval().generate(**batch, **options).logits[0]
    if model_name == "T5WithFusion":
        turned = batch | {"lexical_embeds": batch["lexical_embeds"].flip(-1)}
        assert not torch.equal(peft_model.generate(**turned, **options).logits[0], generated), (
            "the vectors have no effect"
        )


CHECKS = {
    "targets as on T5": same_targets,
    "a step lowers the loss": trains,
    "reloads bit for bit": saves_and_reloads,
    "disabled, it is the base": disabled,
    "several adapters": switches,
    "`adapter_names` in a batch": mixed_batch,
    "merges": merges,
    "`add_weighted_adapter`": weighs,
    "`hotswap_adapter`": hotswaps,
    "generates": generates,
    "fusion layer too": trains_fusion_too,
}


def make() -> Table:
    table = Table(
        "PEFT: every tuner",
        "These are all tuners of the installed PEFT, with PEFT's defaults for T5. *Targets as on T5*: the tuner adapts "
        "the same modules as on the plain T5. *Reloads*: in another process. *Disabled, it is the base*: with the "
        "adapter disabled, the outputs are those of the base model. *Several adapters*: each gives its own outputs "
        "after switching. *Fusion layer too*: the layer trains and is saved although the config does not name it, and "
        "reloads bit for bit; on the plain T5, the config names the output head instead. *`adapter_names`*, "
        "*`add_weighted_adapter`* and *`hotswap_adapter`* are tried with `modules_to_save=[]`, because PEFT refuses "
        "all three if two adapters fully train the same layer. (On fused models, t5fusion combines the fusion layers "
        "in `add_weighted_adapter` itself.)",
        list(CHECKS),
    )
    for row, tuner in tuners():
        for column, check in CHECKS.items():
            table.add(row, column, check, tuner)
            if table.refused(row):  # The tuner is not for T5.
                break
    return table
