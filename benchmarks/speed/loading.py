"""Loading: a bundle in one line, compared with a plain T5 and PEFT; and the peak memory of a process that does it."""

import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import save_file
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer, T5ForConditionalGeneration

from t5fusion import T5FusionProcessor, T5WithFusion, tiny_t5_v2
from t5fusion.hub_export import export

from .measure import Result, in_turn
from .shape import flan_t5_small

GOAL, MEMORY_GOAL = 1.2, 1.1
PLAIN, ONE_LINE, CLASS = "T5 and PeftModel", "AutoModelForSeq2SeqLM", "T5WithFusion"
PEAK = """
import sys
from transformers import AutoModelForSeq2SeqLM
from peft import PeftModel
{}
from benchmarks.speed.measure import peak_megabytes
print(peak_megabytes())
"""
LOAD_PLAIN = "PeftModel.from_pretrained(AutoModelForSeq2SeqLM.from_pretrained(sys.argv[1]), sys.argv[2])"
LOAD_BUNDLE = "AutoModelForSeq2SeqLM.from_pretrained(sys.argv[1], trust_remote_code=True)"


def measure() -> list[Result]:
    """Measure the seconds of loading, and the peak memory."""
    with tempfile.TemporaryDirectory() as folder:
        plain, adapter, bundle = write_models(Path(folder))
        times = in_turn(
            {
                PLAIN: lambda: PeftModel.from_pretrained(T5ForConditionalGeneration.from_pretrained(plain), adapter),
                ONE_LINE: lambda: AutoModelForSeq2SeqLM.from_pretrained(bundle, trust_remote_code=True),
                CLASS: lambda: T5WithFusion.from_pretrained(bundle),
            },
            repeats=9,
        )
        peaks = {
            PLAIN: peak(LOAD_PLAIN, plain, adapter),
            ONE_LINE: peak(LOAD_BUNDLE, bundle),
        }
    ratio = times[ONE_LINE].min / times[PLAIN].min
    return [
        Result(
            work="load a base model of flan-t5-small's shape and its adapter",
            unit="seconds",
            goal=f"below {GOAL} x {PLAIN}",
            peers={PLAIN: times[PLAIN].median},
            ours={name: times[name].median for name in (ONE_LINE, CLASS)},
            ratios={
                f"{name}, of the fastest repeats": times[name].min / times[PLAIN].min for name in (ONE_LINE, CLASS)
            },
            met=ratio < GOAL,
        ),
        Result(
            work="peak memory of a process that loads them",
            unit="MB",
            goal=f"no more than {MEMORY_GOAL} x",
            peers={PLAIN: peaks[PLAIN]},
            ours={ONE_LINE: peaks[ONE_LINE]},
            ratios={"": peaks[ONE_LINE] / peaks[PLAIN]},
            met=peaks[ONE_LINE] <= MEMORY_GOAL * peaks[PLAIN],
        ),
    ]


def write_models(folder: Path) -> tuple[Path, Path, Path]:
    """Write a plain T5, a LoRA adapter on it, and a standalone bundle of the fused model with an adapter."""
    lora = {"r": 32, "target_modules": ["q", "v"], "task_type": "SEQ_2_SEQ_LM"}
    fused = flan_t5_small()
    weights = {name: value for name, value in fused.state_dict().items() if ".fusion." not in name}
    names = [name for name in weights if "embed_tokens" not in name]
    plain = folder / "plain"
    plain.mkdir()
    save_file({name: weights[name].clone() for name in names}, plain / "model.safetensors", metadata={"format": "pt"})
    config = fused.config.to_dict() | {"model_type": "t5", "architectures": ["T5ForConditionalGeneration"]}
    config |= {"tie_word_embeddings": False}
    type(fused.config).__mro__[1].from_dict(config).save_pretrained(plain)
    AutoTokenizer.from_pretrained(str(tiny_t5_v2.PATH)).save_pretrained(plain)
    get_peft_model(T5ForConditionalGeneration.from_pretrained(plain), LoraConfig(**lora)).save_pretrained(
        folder / "adapter"
    )
    model = T5WithFusion(plain, dtype=torch.float32)
    get_peft_model(model, LoraConfig(**lora)).save_pretrained(folder / "run")
    T5FusionProcessor(str(plain), lexical_encoder=None, lexical_source="given").save_pretrained(folder / "run")
    export(folder / "run", folder / "bundle", "standalone")
    return plain, folder / "adapter", folder / "bundle"


def peak(code: str, *arguments: Path) -> float:
    """Return the peak memory, in MB, of a new process that runs `code`."""
    command = [sys.executable, "-c", PEAK.format(code), *map(str, arguments)]
    return float(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout.split()[-1])
