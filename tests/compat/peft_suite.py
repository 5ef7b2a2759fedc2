"""PEFT's own tests of encoder-decoder models, unchanged. Only the model behind its name on the Hub is another."""

import re
import shutil
from collections import Counter

import torch
from hub_server import HubServer
from transformers import T5Config, T5ForConditionalGeneration

from t5fusion import T5WithFusion, VectorKind

from .table import MODELS, Outcome, Table
from .upstream import BUILD, run_tests, source_of

OF_T5 = "T5ForConditionalGeneration or low_cpu_mem_usage or inputs_embeds"
NAME = "peft-internal-testing/tiny-random-T5ForConditionalGeneration-calibrated"
SHAPE = {"vocab_size": 1103, "d_model": 32, "d_kv": 8, "d_ff": 37, "num_layers": 5, "num_heads": 4}
TRAINING = "failed while the fusion layer trains"
WITH_KINDS = "failed with two kinds of vectors"
KINDS = {"item": 16, "image": VectorKind(8, tokens=4, projector="mlp")}
WHY = {  # tests fail while the fusion layer trains
    "test_training_encoder_decoders_gradient_checkpointing": "asserts that no weight outside the adapter gets a "
    "gradient. It fails because the fusion layer gets one",
    "test_training_encoder_decoders_layer_indexing": "asserts the same, and fails for the same reason",
}
TUNER = re.compile(r"\[(?:\w+-)?(\w+)Config-")


def make() -> Table:
    table = Table(
        "PEFT's own tests",
        "These are the tests in `tests/test_encoder_decoder_models.py` of the installed PEFT. They run on a random T5 "
        "of the same shape as PEFT's own, and on the fused model built from it, with a frozen fusion layer "
        "(`T5FUSION_PEFT_HOOK=0`). The cells are numbers of tests; PEFT itself skips some. "
        f"*{TRAINING}* counts the tests that pass with a frozen fusion layer, and fail by default, when the layer "
        f"trains with the adapter. *{WITH_KINDS}* counts the tests that pass with one kind of vectors, and fail with "
        "two kinds. A vector of one of the two kinds takes four tokens.",
        ["passed", "skipped", "failed on both", "failed on the fused model only", TRAINING, WITH_KINDS],
    )
    by_model = {"T5": run("T5"), "T5WithFusion": run("T5WithFusion", T5FUSION_PEFT_HOOK="0")}
    with_kinds = run("T5WithFusion", KINDS, T5FUSION_PEFT_HOOK="0")
    results = {test: {model: by_model[model][test] for model in MODELS} for test in by_model["T5"]}
    table.cells = {row: summary(tests) for row, tests in sorted(by_tuner(results).items())}
    by_default = run("T5WithFusion")
    failed = set()
    for row, tests in by_tuner(results).items():
        lost = [
            test
            for test, outcomes in tests.items()
            if by_default[test].status != outcomes["T5WithFusion"].status == "works"
        ]
        failed |= {test.partition("[")[0] for test in lost}
        table.cells[row][TRAINING] = {"T5WithFusion": Outcome("number", str(len(lost)))}
        by_kinds = [test for test in tests if with_kinds[test].status != tests[test]["T5WithFusion"].status]
        table.cells[row][WITH_KINDS] = {"T5WithFusion": Outcome("number", str(len(by_kinds)))}
    table.about += reasons(failed)
    return table


def reasons(failed: set[str]) -> str:
    """Return a sentence for each test that fails while the fusion layer trains."""
    known = [test for test in WHY if test in failed]
    return "".join(f" `{test}` {WHY.get(test, 'has no known reason')}." for test in [*known, *sorted(failed - {*WHY})])


def run(model: str, vectors: dict | None = None, **environment: str) -> dict[str, Outcome]:
    """Return the outcome of each test. `vectors` are the kinds of vectors of the fused model; None for one kind."""
    folder = BUILD / "peft" / model
    shutil.rmtree(folder, ignore_errors=True)
    plain, fused = folder / "plain", folder / "fused"
    torch.manual_seed(0)
    T5ForConditionalGeneration(T5Config(**SHAPE, decoder_start_token_id=0)).save_pretrained(plain)
    if model == "T5WithFusion":
        T5WithFusion(plain, **({"vectors": vectors} if vectors else {})).save_pretrained(fused)
    shutil.copytree(source_of("peft") / "tests", folder / "tests")
    (folder / "tests" / "__init__.py").touch()  # The distribution leaves it out.
    with HubServer() as hub:  # The tests look there for the model, and for much that is missing.
        hub.add_folder(NAME, plain if model == "T5" else fused)
        # Parametrised tests contain the model's name in their own.
        tests = ("tests/test_encoder_decoder_models.py", "-k", OF_T5, "-n", "2")
        outcomes = run_tests(folder, "-p", "t5fusion", *tests, **hub.environment(folder / "home"), **environment)
    return {test: outcome for (_, test), outcome in outcomes.items()}


def by_tuner(results: dict[str, dict[str, Outcome]]) -> dict[str, dict[str, dict[str, Outcome]]]:
    rows: dict[str, dict[str, dict[str, Outcome]]] = {}
    for test, outcomes in results.items():
        match = TUNER.search(test)
        rows.setdefault(match[1] if match else "others", {})[test] = outcomes
    return rows


def summary(tests: dict[str, dict[str, Outcome]]) -> dict[str, dict[str, Outcome]]:
    """Return the cells of a row: numbers, and the names of the tests that only the fused model fails."""
    kinds = Counter((outcomes["T5"].status, outcomes["T5WithFusion"].status) for outcomes in tests.values())
    lost = [
        f"{test}: {outcomes['T5WithFusion']}"
        for test, outcomes in tests.items()
        if outcomes["T5WithFusion"].status != outcomes["T5"].status == "works"
    ]
    numbers = {
        "passed": kinds["works", "works"],
        "skipped": kinds["refused", "refused"],
        "failed on both": kinds["wrong", "wrong"],
    }
    cells = {column: {"T5WithFusion": Outcome("number", str(number))} for column, number in numbers.items()}
    only = Outcome("wrong", "; ".join(lost)) if lost else Outcome("number", "0")
    return cells | {"failed on the fused model only": {"T5WithFusion": only}}
