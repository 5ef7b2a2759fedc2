"""The model on a GPU: `make gpu` runs these tests. Without a GPU they are skipped."""

import copy

import pytest
import torch
from datasets import Dataset
from transformers import Trainer, TrainingArguments

from t5fusion import DataCollatorWithFusion, T5FusionProcessor, T5WithFusion, VectorKind
from t5fusion.finetune.inputs import prepare
from t5fusion.finetune.options import TrainingOptions
from t5fusion.finetune.training import train

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU that torch can use")

KINDS = {
    "one": {"lexical": VectorKind(6, scale=None)},
    "several": {"user": 5, "image": VectorKind(7, tokens=3, projector="mlp"), "price": VectorKind(1, scale="log")},
}
TEXTS = ["app", "settings of it", "a_b", "user"]
BOUND = 1e-3  # of logits in fp32, which a GPU adds up in a different order


@pytest.fixture(params=KINDS)
def kinds(request):
    return KINDS[request.param]


@pytest.fixture
def models(plain_folders, kinds):
    """The same model on the CPU and on the GPU."""
    model = T5WithFusion(str(plain_folders["flan"]), vectors=kinds).eval()
    return model, copy.deepcopy(model).cuda()


@pytest.fixture
def processor(plain_folders, kinds):
    return T5FusionProcessor(str(plain_folders["flan"]), vectors=kinds, lexical_encoder=None, lexical_source="given")


@pytest.fixture
def vectors(processor):
    """A vector of each kind for each text, float32 (texts, dim)."""
    generator = torch.Generator().manual_seed(0)
    return {name: torch.randn(len(TEXTS), kind.dim, generator=generator) for name, kind in processor.kinds.items()}


@pytest.mark.parametrize("packing", [False, True], ids=["padded", "packed"])
def test_losses_and_gradients_are_those_of_the_cpu(models, processor, vectors, packing):
    rows = processor.rows(TEXTS, TEXTS, lexical_embeds=vectors)
    batch = DataCollatorWithFusion(processor, packing=packing)(rows)
    losses, gradients = [], []
    for model, device in zip(models, ("cpu", "cuda"), strict=True):
        loss = model(**batch.to(device)).loss
        loss.backward()
        losses.append(loss.detach().cpu())
        gradients.append([weight.grad.cpu() for weight in model.encoder.fusion.parameters()])
    torch.testing.assert_close(losses[0], losses[1], atol=BOUND, rtol=BOUND)
    torch.testing.assert_close(gradients[0], gradients[1], atol=BOUND, rtol=BOUND)


@pytest.mark.parametrize("options", [{}, {"num_beams": 3}, {"cache_implementation": "static"}], ids=str)
def test_texts_are_those_of_the_cpu(models, processor, vectors, options):
    batch = processor(TEXTS, lexical_embeds=vectors)
    on_cpu, on_gpu = (
        model.generate(**batch.to(device), max_new_tokens=8, **options).cpu()
        for model, device in zip(models, ("cpu", "cuda"), strict=True)
    )
    assert torch.equal(on_cpu, on_gpu)


def test_compiled_it_gives_the_same_logits(models, processor, vectors):
    batch = processor(TEXTS, lexical_embeds=vectors, text_target=TEXTS).to("cuda")
    _, model = models
    with torch.no_grad():
        expected, compiled = model(**batch).logits, torch.compile(model)(**batch).logits
    torch.testing.assert_close(compiled, expected, atol=BOUND, rtol=BOUND)


def test_vectors_without_placeholders_are_refused(plain_folders, run_python):
    """In a process of its own, because a failed assertion ends the use of the GPU."""
    code = """
        import sys, torch
        from t5fusion import T5WithFusion
        model = T5WithFusion(sys.argv[1], lexical_dim=6).cuda()
        try:
            model(input_ids=torch.tensor([[5, 6, 1]]).cuda(), labels=torch.tensor([[7, 1]]).cuda(),
                  lexical_embeds=torch.ones(1, 6).cuda())
            torch.cuda.synchronize()
        except RuntimeError as error:
            print(type(error).__name__)
    """
    assert "Error" in run_python(code, plain_folders["flan"], fresh=True)


def test_the_trainer_lowers_the_loss_in_bf16(models, processor, vectors, tmp_path):
    _, model = models
    rows = Dataset.from_list(processor.rows(TEXTS * 8, TEXTS * 8, lexical_embeds={
        name: of_kind.repeat(8, 1) for name, of_kind in vectors.items()
    }))  # fmt: skip
    arguments = TrainingArguments(tmp_path, max_steps=40, learning_rate=1e-2, report_to=[], bf16=True)
    trainer = Trainer(model, arguments, DataCollatorWithFusion(processor), rows, eval_dataset=rows)
    before = trainer.evaluate()["eval_loss"]
    trainer.train()
    assert trainer.evaluate()["eval_loss"] < 0.8 * before


def test_what_train_saves_loads_on_the_cpu(plain_folders, tmp_path):
    base = str(plain_folders["flan"])
    processor = T5FusionProcessor(base, lexical_dim=6, lexical_encoder=None, lexical_source="given")
    rows = prepare(TEXTS * 4, TEXTS * 4, torch.randn(16, 6), processor)
    model = train(rows, rows[:4], processor, TrainingOptions(base_model=base, epochs=2), tmp_path).eval()
    assert next(model.parameters()).is_cuda
    batch = DataCollatorWithFusion(processor)(rows[:4])
    saved = T5WithFusion.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        on_cpu, on_gpu = saved(**batch).logits, model(**batch.to("cuda")).logits.cpu()
    torch.testing.assert_close(on_cpu, on_gpu, atol=BOUND, rtol=BOUND)
