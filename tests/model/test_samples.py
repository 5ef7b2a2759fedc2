"""Samples of weights as they were loaded: they are taken late, and are those of the file all the same."""

import copy
import pickle
import sys

import pytest
import torch

from t5fusion import T5WithFusion, samples_t5fusion, tiny_t5
from t5fusion.samples_t5fusion import LoadedWeights, sample

ON_LINUX = pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells which files are mapped")


@pytest.fixture
def folder(tmp_path):
    T5WithFusion(str(tiny_t5.PATH), lexical_dim=4).save_pretrained(tmp_path / "saved")
    return tmp_path / "saved"


def samples_of(model):
    return {name: sample(name, value) for name, value in model.named_parameters()}


def change_all(model):
    with torch.no_grad():
        for value in model.parameters():
            value.add_(1)


def check(loaded, expected):
    assert expected
    for name, numbers in expected.items():
        assert torch.equal(loaded.sample(name), numbers), name
        assert loaded.rows(name) == numbers[-1]


@ON_LINUX
def test_no_weight_beneath_the_fusion_layer_is_read_by_loading(folder):
    unread = T5WithFusion.from_pretrained(folder)._loaded_weights._unread
    assert set(unread) == {name for name in samples_of(T5WithFusion.from_pretrained(folder)) if ".fusion." not in name}


def test_a_late_sample_is_that_of_the_file(folder):
    expected = samples_of(T5WithFusion.from_pretrained(folder))
    model = T5WithFusion.from_pretrained(folder)
    change_all(model)
    check(model._loaded_weights, expected)
    check(model._loaded_weights, expected)  # read a second time
    assert not model._loaded_weights._unread


def test_a_file_that_is_replaced_or_removed_after_loading_changes_no_sample(folder):
    model = T5WithFusion.from_pretrained(folder)
    other = T5WithFusion.from_pretrained(folder)
    expected = samples_of(T5WithFusion.from_pretrained(folder))
    change_all(other)
    other.save_pretrained(folder)
    check(model._loaded_weights, expected)
    last = T5WithFusion.from_pretrained(folder)
    (folder / "model.safetensors").unlink()
    check(last._loaded_weights, samples_of(other))


def test_a_copied_and_a_pickled_model_keep_the_samples(folder):
    model = T5WithFusion.from_pretrained(folder)
    expected = samples_of(T5WithFusion.from_pretrained(folder))
    copied = copy.deepcopy(model)
    change_all(model)
    change_all(copied)
    pickled = pickle.loads(pickle.dumps(copied._loaded_weights))
    for loaded in (copied._loaded_weights, pickled, model._loaded_weights):
        check(loaded, expected)


def test_without_a_list_of_mapped_files_samples_are_taken_at_once(folder, monkeypatch):
    monkeypatch.setattr(samples_t5fusion, "MAPPED_FILES", "/does/not/exist")
    model = T5WithFusion.from_pretrained(folder)
    assert not model._loaded_weights._unread
    check(model._loaded_weights, samples_of(T5WithFusion.from_pretrained(folder)))


@pytest.mark.parametrize("keywords", [{"dtype": torch.bfloat16}, {"use_safetensors": False}])
def test_weights_that_are_copies_or_of_another_file_have_their_samples(folder, keywords):
    if "use_safetensors" in keywords:
        torch.save(T5WithFusion.from_pretrained(folder).state_dict(), folder / "pytorch_model.bin")
        (folder / "model.safetensors").unlink()
    expected = samples_of(T5WithFusion.from_pretrained(folder, **keywords))
    model = T5WithFusion.from_pretrained(folder, **keywords)
    change_all(model)
    check(model._loaded_weights, expected)


def test_weights_of_no_file_are_sampled_at_once():
    weights = {"rows": torch.randn(3, 4), "turned": torch.randn(4, 3).T, "whole": torch.ones(3, dtype=torch.int64)}
    loaded = LoadedWeights(weights.items())
    assert not loaded._unread
    assert torch.equal(loaded.sample("rows"), sample("rows", weights["rows"]))
    assert torch.equal(loaded.sample("turned"), sample("turned", weights["turned"]))
    assert loaded.sample("whole") is loaded.sample("absent") is loaded.rows("whole") is None
