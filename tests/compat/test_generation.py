"""The checks of docs/compatibility.md on decoding, without those that transformers refuses for any T5."""

import pytest
from compat.generation import OTHERS, WAYS, as_t5, one_by_one, vectors_count

BY_THE_HUB = ("forced words", "groups of beams", "contrastive search", "DoLa")
REFUSED = {"quantised cache", "offloaded cache", "guidance", "prompt lookup", *BY_THE_HUB}


@pytest.mark.parametrize("row", sorted(WAYS.keys() - REFUSED))
def test_way_of_decoding(row):
    as_t5("T5WithFusion", WAYS[row])
    one_by_one("T5WithFusion", WAYS[row])
    vectors_count("T5WithFusion", WAYS[row])


@pytest.mark.parametrize("row", OTHERS)
def test_what_is_given_or_wanted(row):
    OTHERS[row]("T5WithFusion")
