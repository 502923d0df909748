"""Folders in the uniform layout load with stock classes where sos_deap is not imported."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from sos_deap import gene_map, prune
from tests.tiny import assert_close, build, inputs, output, random_order

# Model types with the kinds of genes that their stock configs can express.
GENES = {
    "llama": "groups+channels",
    "qwen2": "groups+channels",
    "gpt2": "channels",
    "bert": "channels",
}

LOAD = """
import json, sys
import torch, transformers

job, found = json.loads(sys.stdin.read()), {}
for folder, (auto, ids) in job.items():
    model = getattr(transformers, auto).from_pretrained(folder, trust_remote_code=False)
    with torch.inference_mode():
        logits = model(input_ids=torch.tensor(ids))[0]
    found[folder] = [type(model).__name__, type(model).__module__, logits.tolist()]
assert not any(name.startswith("sos_deap") for name in sys.modules)
print("RESULT", json.dumps(found))
"""


def test_stock_classes_load_them_without_this_package(tmp_path: Path) -> None:
    job, expected = dict[str, Any](), dict[str, Any]()
    for family, kinds in GENES.items():
        model = build(family, 2 if "groups" in kinds else None)
        genes = gene_map(model, kinds, 4, random_order(model))
        kept = {"groups": [0, 1], "channels": [1, 0, 1, 1]}  # equally many in each layer
        chromosome = [
            kept[part.kind][(gene + part.layer) % part.size]
            for part in genes.parts
            for gene in range(part.size)
        ]
        pruned = prune(model, chromosome, genes, "uniform")
        assert pruned.num_parameters() < model.num_parameters()
        pruned.save_pretrained(tmp_path / family)
        batch = inputs(model)
        auto = "AutoModel" if family == "bert" else "AutoModelForCausalLM"
        auto = "AutoModelForMaskedLM" if "MaskedLM" in type(model).__name__ else auto
        job[str(tmp_path / family)] = [auto, batch["input_ids"].tolist()]
        expected[str(tmp_path / family)] = [type(model).__name__, output(pruned, batch)]
    done = subprocess.run(
        [sys.executable, "-c", LOAD],
        input=json.dumps(job),
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
    )
    assert not done.returncode, done.stderr[-2000:]
    found = json.loads(done.stdout.split("RESULT ")[1])
    for folder, (name, logits) in expected.items():
        assert found[folder][0] == name
        assert found[folder][1].startswith("transformers.models.")
        assert_close(torch.tensor(found[folder][2]), logits)
