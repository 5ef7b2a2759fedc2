"""Quantised base models on a CPU, as in QLoRA: load, train an adapter, save, reload, export."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from peft import LoraConfig, PeftModel, get_peft_model, prepare_model_for_kbit_training
from transformers import BitsAndBytesConfig, PreTrainedModel, QuantoConfig, TorchAoConfig

from t5fusion import T5WithFusion
from t5fusion.hub_export.bundle import export

from .models import batch_for, in_another_process, load, plain_folder
from .table import Table

BOUNDS = {8: 0.03, 4: 0.3}  # By bits: how far logits may lie from those in fp32, relative to their norm.
LORA = {"task_type": "SEQ_2_SEQ_LM", "target_modules": ["q", "k", "v", "o", "wi_0", "wi_1"], "r": 4}


@dataclass(frozen=True)
class Scheme:
    """A way to quantise. `config` imports the library, and makes the configuration for `from_pretrained`."""

    bits: int
    config: Callable
    dtype: torch.dtype = torch.float32

    def load(self, model_name: str, folder=None, **options) -> PreTrainedModel:
        return load(model_name, folder, dtype=self.dtype, **options)

    def quantised(self, model_name: str) -> PreTrainedModel:
        return self.load(model_name, quantization_config=self.config())


def torchao(name: str, **fields) -> Callable:
    def make() -> TorchAoConfig:
        from torchao import quantization

        return TorchAoConfig(getattr(quantization, name)(**fields))

    return make


def int4_in_groups() -> TorchAoConfig:
    from torchao.quantization import PerGroup

    return torchao("IntxWeightOnlyConfig", weight_dtype=torch.int4, granularity=PerGroup(32))()


def four_bit(**fields) -> Callable:
    return lambda: BitsAndBytesConfig(load_in_4bit=True, **fields)


SCHEMES = {
    "bitsandbytes: 8 bit": Scheme(8, lambda: BitsAndBytesConfig(load_in_8bit=True)),
    "bitsandbytes: nf4": Scheme(4, four_bit(bnb_4bit_quant_type="nf4")),
    "bitsandbytes: nf4, double, in bf16": Scheme(
        4, four_bit(bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True), torch.bfloat16
    ),
    "bitsandbytes: fp4": Scheme(4, four_bit(bnb_4bit_quant_type="fp4")),
    "torchao: Int8WeightOnlyConfig": Scheme(8, torchao("Int8WeightOnlyConfig")),
    "torchao: Int8DynamicActivationInt8WeightConfig": Scheme(8, torchao("Int8DynamicActivationInt8WeightConfig")),
    "torchao: Int4WeightOnlyConfig": Scheme(4, torchao("Int4WeightOnlyConfig", group_size=32), torch.bfloat16),
    "torchao: IntxWeightOnlyConfig, int4": Scheme(4, int4_in_groups),
    "quanto: int8": Scheme(8, lambda: QuantoConfig(weights="int8")),
    "quanto: int4": Scheme(4, lambda: QuantoConfig(weights="int4")),
}


@torch.no_grad()
def logits(model: torch.nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    batch = {name: value for name, value in batch.items() if name != "labels"}
    return model.eval()(**batch, decoder_input_ids=torch.tensor([[0, 5, 9]] * 2)).logits.float()


def apart(actual: torch.Tensor, expected: torch.Tensor) -> float:
    return ((actual - expected).norm() / expected.norm()).item()


def fusion_of(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name.rpartition("fusion.")[2]: value for name, value in model.named_parameters() if ".fusion." in name}


def adapted(model_name: str, scheme: Scheme) -> PeftModel:
    """Add an adapter as recommended: PEFT's preparation, then LoRA, and the fusion layer if there is one."""
    model = prepare_model_for_kbit_training(scheme.quantised(model_name))
    torch.manual_seed(0)
    return get_peft_model(
        model, LoraConfig(**LORA, modules_to_save=["fusion"] if model_name == "T5WithFusion" else None)
    )


def trained(model_name: str, scheme: Scheme) -> tuple[PeftModel, list[float]]:
    peft_model, batch = adapted(model_name, scheme), batch_for(model_name)
    optimizer = torch.optim.AdamW([p for p in peft_model.parameters() if p.requires_grad], lr=1e-2)
    losses = []
    for _ in range(4):
        loss = peft_model.train()(**batch).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return peft_model, losses


# The checks. Each takes "T5" or "T5WithFusion", and a scheme.


def loads(model_name: str, scheme: Scheme) -> None:
    model, plain = scheme.quantised(model_name), load(model_name)
    weight = model.encoder.block[0].layer[0].SelfAttention.q.weight
    assert type(weight.data) is not torch.Tensor or weight.dtype not in (torch.float32, torch.bfloat16), "not quantised"
    for name, value in fusion_of(model).items():
        assert value.dtype == torch.float32, f"{name} of the fusion layer is {value.dtype}"
        assert torch.equal(value, fusion_of(plain)[name]), f"{name} of the fusion layer is another"
    batch = batch_for(model_name)
    distance = apart(logits(model, batch), logits(plain, batch))
    assert 0 < distance <= BOUNDS[scheme.bits], f"logits lie {distance:.1%} from those in fp32"


def trains(model_name: str, scheme: Scheme) -> None:
    peft_model, losses = trained(model_name, scheme)
    assert losses[-1] < losses[0] - 0.1, f"the loss goes {', '.join(f'{loss:.4f}' for loss in losses)}"
    fusion = fusion_of(peft_model)
    for name, value in fusion.items():
        if "modules_to_save" in name:
            original = fusion[name.replace("modules_to_save.default", "original_module")]
            assert value.dtype == torch.float32 and not torch.equal(value, original), f"{name} stays"


def reloads_adapter(model_name: str, scheme: Scheme) -> None:
    peft_model, _ = trained(model_name, scheme)
    with TemporaryDirectory() as folder:
        peft_model.save_pretrained(folder)
        same(peft_model, in_another_process(adapter_logits, model_name, scheme_name(scheme), folder, plain_folder()))


def adapter_logits(model_name: str, name: str, folder: str, base: Path):
    torch.set_num_threads(1)
    scheme = SCHEMES[name]
    model = scheme.load(model_name, base, quantization_config=scheme.config())
    peft_model = PeftModel.from_pretrained(prepare_model_for_kbit_training(model), folder)
    return logits(peft_model, batch_for(model_name)).numpy()


def reloads_base(model_name: str, scheme: Scheme) -> None:
    model = scheme.quantised(model_name)
    with TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        same(model, in_another_process(base_logits, model_name, folder))


def base_logits(model_name: str, folder: str):
    torch.set_num_threads(1)
    model = load(model_name, folder)
    assert all(value.dtype == torch.float32 for value in fusion_of(model).values()), "the fusion layer is not in fp32"
    return logits(model, batch_for(model_name)).numpy()


def exports(model_name: str, scheme: Scheme) -> None:
    """A reader gets the adapter on the published base model, and, after quantising it alike, the trained model."""
    peft_model, _ = trained(model_name, scheme)
    expected = logits(peft_model, batch_for(model_name))
    with TemporaryDirectory() as folder:
        peft_model.save_pretrained(f"{folder}/bare")
        bundle = export(f"{folder}/bare", f"{folder}/bundle", kind="standalone")
        full, quantised = in_another_process(bundle_logits, scheme_name(scheme), str(bundle))
    distance = apart(torch.from_numpy(full), expected)
    assert distance <= BOUNDS[scheme.bits], f"logits lie {distance:.1%} from those in training"
    distance = apart(
        torch.from_numpy(quantised), expected
    )  # The current logits would differ, because saving moves what bitsandbytes packed.
    assert distance == 0, f"logits lie {distance:.2g} of their norm apart, quantised alike"


def bundle_logits(name: str, bundle: str):
    torch.set_num_threads(1)
    scheme, batch = SCHEMES[name], batch_for("T5WithFusion")
    full = T5WithFusion.from_pretrained(bundle)
    quantised = T5WithFusion.from_pretrained(bundle, dtype=scheme.dtype, quantization_config=scheme.config())
    return logits(full, batch).numpy(), logits(prepare_model_for_kbit_training(quantised), batch).numpy()


def same(model: torch.nn.Module, saved_logits) -> None:
    model_name = "T5WithFusion" if fusion_of(model) else "T5"
    distance = apart(torch.from_numpy(saved_logits), logits(model, batch_for(model_name)))
    assert distance == 0, f"logits lie {distance:.2g} of their norm apart"


def scheme_name(scheme: Scheme) -> str:
    return next(name for name, known in SCHEMES.items() if known is scheme)


CHECKS = {
    "loads": loads,
    "trains LoRA": trains,
    "adapter reloads bit for bit": reloads_adapter,
    "quantised model reloads bit for bit": reloads_base,
}


def make() -> Table:
    table = Table(
        "Quantised base models on a CPU",
        "*Loads*: the fusion layer stays in fp32 with the same weights, and the logits differ from those in fp32 by at "
        "most "
        + " or ".join(f"{bound:.0%} (with {bits} bits)" for bits, bound in BOUNDS.items())
        + " of their norm. *Trains LoRA*: after PEFT's `prepare_model_for_kbit_training`, LoRA trains on five "
        "matrices of a block, and the fusion layer trains too and changes. Reloading takes place in another process. "
        "*Exports*: a reader loads the adapter on the base model in full precision, and the logits differ from those "
        "of the trained quantised model by at most the same bound. "
        "With the same `quantization_config` and preparation, the reader gets that model bit for bit.",
        [*CHECKS, "exports"],
    )
    for row, scheme in SCHEMES.items():
        for column, check in CHECKS.items():
            table.add(row, column, check, scheme)
            if column == "loads" and table.refused(row):
                break
        else:
            table.add(row, "exports", exports, scheme, models=("T5WithFusion",))
    return table
