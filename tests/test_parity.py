"""Faults that are planted into an export: each is refused by the parity check of stage 5."""

import json
import shutil

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from domain_embed.beir import Passage, RetrievalSet
from domain_embed.graphs import check_fp32, compare_graphs
from domain_embed.models import load_model
from domain_embed.onnx_export import export_onnx
from domain_embed.parity import reference_vectors, with_probes
from domain_embed.runs import InputError

TEXTS = {
    "how much pressure does the pump give": "The P-200 pump runs at 3 bar.",
    "when does the valve open": "The valve opens at 5 bar and closes at 4 bar.",
    "what does error E17 mean": "Error E17: no water reaches the sensor.",
    "how often is the filter cleaned": "Clean the filter every 500 hours.",
}


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    "A model with a prompt, a test set, PyTorch's vectors, and the export."
    passages = [Passage(f"p{n}", "d", "", text) for n, text in enumerate(TEXTS.values())]
    queries = {f"q{n}": text for n, text in enumerate(TEXTS)}
    test = with_probes(RetrievalSet(passages, queries, {f"q{n}": {f"p{n}": 1} for n in range(len(TEXTS))}))
    model = load_model("embedded", 64, query_prompt="query: ")
    reference = reference_vectors(model, test)
    folder = tmp_path_factory.mktemp("parity") / "onnx"
    export_onnx(model, folder)
    return test, reference, folder


def lose_prompt(folder):
    config = json.loads((folder / "export.json").read_text())
    (folder / "export.json").write_text(json.dumps(config | {"prompts": {"query": "", "document": ""}}))


def swap_tokens(folder):
    content = json.loads((folder / "tokenizer.json").read_text())
    vocabulary = content["model"]["vocab"]
    vocabulary["the"], vocabulary["valve"] = vocabulary["valve"], vocabulary["the"]
    (folder / "tokenizer.json").write_text(json.dumps(content))


def skip_normalisation(folder):
    model = onnx.load(folder / "model.onnx")
    next(node for node in model.graph.node if "sentence_embedding" in node.output).output[0] = "unit"
    model.graph.initializer.append(numpy_helper.from_array(np.float32(3.0), "three"))
    model.graph.node.append(helper.make_node("Mul", ["unit", "three"], ["sentence_embedding"]))
    onnx.save(model, folder / "model.onnx")


def pool_first_token(folder):
    model = load_model("embedded", 64, query_prompt="query: ")
    model[1].pooling_mode = "cls"
    export_onnx(model, folder)


def shorten(folder):
    config = json.loads((folder / "export.json").read_text())
    (folder / "export.json").write_text(json.dumps(config | {"max_length": 16}))


@pytest.mark.parametrize("fault", [None, lose_prompt, swap_tokens, skip_normalisation, pytest.param(pool_first_token, marks=pytest.mark.slow), shorten], ids=lambda fault: getattr(fault, "__name__", "none"))
def test_a_planted_fault_is_refused(exported, tmp_path, fault):
    test, reference, folder = exported
    copy = shutil.copytree(folder, tmp_path / "onnx")
    if fault:
        fault(copy)
    result = compare_graphs({"onnx fp32": copy / "model.onnx"}, test, reference)[0]["onnx fp32"]
    if fault is None:
        check_fp32(result, 0.01)
        assert result["top10_changed"] == 0 and len(result["worst"]) == 3
    else:
        with pytest.raises(InputError, match="is not the model that was tuned"):
            check_fp32(result, 0.01)
