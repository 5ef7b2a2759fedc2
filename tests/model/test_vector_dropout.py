"""`vector_dropout`: rows lose their vectors in training steps, and only there."""

import pytest
import torch

from t5fusion import DataCollatorWithFusion, T5FusionConfig, T5FusionProcessor, T5WithFusion, VectorKind

KINDS = {"item": VectorKind(4, tokens=2), "user": 3}
TEXTS = ["app", "settings of it", "a_b", "user"]


@pytest.fixture
def processor(plain_folders):
    return T5FusionProcessor(str(plain_folders["flan"]), vectors=KINDS, lexical_encoder=None, lexical_source="given")


def model_that_drops(plain_folders, share):
    """Return a model in training mode that draws random numbers for vectors only."""
    model = T5WithFusion(
        str(plain_folders["flan"]), vectors=KINDS, vector_dropout=share, dropout_rate=0.0, dtype=torch.float32
    )
    return model.train()


def rows_of(processor):
    generator = torch.Generator().manual_seed(0)
    vectors = {name: torch.randn(4, kind.dim, generator=generator) for name, kind in processor.kinds.items()}
    return processor.rows(TEXTS, TEXTS, lexical_embeds=vectors)


def logits_without(model, processor):
    return model(**processor(TEXTS, lexical_embeds=False, text_target=TEXTS)).logits


def test_a_row_that_lost_its_vectors_is_a_row_without(plain_folders, processor):
    model = model_that_drops(plain_folders, 1.0)
    batch = DataCollatorWithFusion(processor)(rows_of(processor))
    torch.testing.assert_close(model(**batch).logits, logits_without(model, processor))


def test_only_training_steps_drop_vectors(plain_folders, processor):
    model, other = model_that_drops(plain_folders, 1.0).eval(), model_that_drops(plain_folders, 0.0).eval()
    batch = DataCollatorWithFusion(processor)(rows_of(processor))
    assert torch.equal(model(**batch).logits, other(**batch).logits)


def test_a_share_of_the_rows_loses_all_vectors(plain_folders, processor):
    """Each row has the logits of a row with all of its vectors, or of one with none."""
    model, full = model_that_drops(plain_folders, 0.3), model_that_drops(plain_folders, 0.0)
    batch = DataCollatorWithFusion(processor)(rows_of(processor))
    with_all, with_none = full(**batch).logits, logits_without(full, processor)
    torch.manual_seed(0)
    without = 0
    for _ in range(100):
        for row, logits in enumerate(model(**batch).logits):
            lost = torch.allclose(logits, with_none[row], atol=1e-4)
            assert lost or torch.allclose(logits, with_all[row], atol=1e-4)
            without += lost
    assert 90 < without < 150  # of 400


def test_packed_rows_lose_their_vectors_one_by_one(plain_folders, processor):
    model = model_that_drops(plain_folders, 0.5)
    batch = DataCollatorWithFusion(processor, packing=True)(rows_of(processor))
    assert len(batch["input_ids"]) == 1, "all rows share a sequence"
    is_placeholder = batch["input_ids"][0] >= model.config.lexical_token_id
    rows = batch["row_ids"][0][is_placeholder]
    torch.manual_seed(0)
    outcomes = set()
    for _ in range(30):
        _, row_ids = model._drop_vectors(batch["input_ids"], None, batch["row_ids"])
        kept = row_ids[0][is_placeholder] > 0
        by_row = [set(kept[rows == row].tolist()) for row in range(1, 5)]
        assert all(len(each) == 1 for each in by_row), "a row loses all of its vectors, or none"
        assert torch.equal(row_ids[0][~is_placeholder], batch["row_ids"][0][~is_placeholder])
        outcomes.add(tuple(each.pop() for each in by_row))
    assert len(outcomes) > 5
    model(**batch).loss.backward()


def test_a_wrong_share_is_refused():
    for share in (-0.1, 1.5, True, "half"):
        with pytest.raises(ValueError, match="`vector_dropout` is .*; expected a number from 0 to 1"):
            T5FusionConfig(vector_dropout=share)


def test_a_config_without_dropout_is_saved_as_before():
    assert "vector_dropout" not in T5FusionConfig().to_diff_dict()
