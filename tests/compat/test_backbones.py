"""The checks of base models that are most likely to break, and the words of refusals."""

import re

import pytest
from compat import backbones


@pytest.mark.parametrize("row", ["UL2, FLAN-UL2", "CodeT5+ 220m, 770m", "`subfolder=`", "`<lexical>` in its tokenizer"])
def test_backbone(row):
    backbones.exact("T5WithFusion", row)
    backbones.processes("T5WithFusion", row)
    backbones.generates("T5WithFusion", row)


@pytest.mark.parametrize("row", ["ByT5", "a vocabulary grown before"])
def test_ids_past_the_table(row):
    model = backbones.load("T5WithFusion", row)
    assert model.config.lexical_token_id == model.config.vocab_size
    backbones.processes("T5WithFusion", row)


@pytest.mark.parametrize("row", ["mT5, mT0, Aya", "a tokenizer of SentencePiece alone"])
def test_tokenizers_of_sentencepiece(row):
    pytest.importorskip("sentencepiece")
    backbones.exact("T5WithFusion", row)
    backbones.processes("T5WithFusion", row)


@pytest.mark.parametrize("row", ["CodeT5+ 220m, 770m"])
def test_trained_it_reloads_to_the_bit(row):
    backbones.reloads("T5WithFusion", row)


@pytest.mark.parametrize("row", list(backbones.REFUSED))
def test_others_are_refused_by_name(row):
    wrong_type = f"^{re.escape(row)} is a model of type '.+'; expected 't5'"
    reason = "lack some or all weights of the decoder" if row == "Sentence-T5" else wrong_type
    with pytest.raises(ValueError, match=reason):
        backbones.opens("T5WithFusion", row)
