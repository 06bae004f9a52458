import json
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
def test_the_notebook_goes_the_whole_way():
    nbformat = pytest.importorskip("nbformat")
    nbclient = pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    notebook = nbformat.read(ROOT / "docs/first_steps.ipynb", as_version=4)
    assert not any(cell.get("outputs") for cell in notebook.cells)
    resources = {"metadata": {"path": str(ROOT / "docs")}}
    nbclient.NotebookClient(notebook, timeout=1800, resources=resources).execute()
    folder = ROOT / "work_dirs/first_steps"
    metrics = json.loads((folder / "packed/model.json").read_text())["metrics"]
    assert metrics["coco/bbox_mAP_50"] > 0.8
    assert metrics["coco/segm_mAP_50"] > 0.8
    assert (folder / "report/report.html").is_file()
    assert (folder / "fruit.onnx").is_file()
