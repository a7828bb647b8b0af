"""The paper's figures of a dataset: drawn once with captions that say what they are of, then read."""

import io
import json

import PIL.Image
import pytest
from conftest_tree import D

from deepsimreg.paper import drawn, publish
from deepsimreg.paper.drawn import drawings
from deepsimreg.paper.reports import Published

FIGURES = {
    *("dice", "dice-per-class", "smoothness", "convergence", "tuning", "matched-smoothness", "sample", "sample-detail"),
    *("features-seg", "features-ae", "landscape", "ablations", "labels", "robustness", "contrast"),
    *("optimisation", "optimisation-traces"),
}


def test_every_figure_is_drawn_once_and_says_what_it_is_of(made, tmp_path, monkeypatch):
    found = drawings(made, D)
    assert set(found) == FIGURES
    for name, drawing in found.items():
        assert drawing.png.read_bytes().startswith(b"\x89PNG"), name
        assert f"Data: {D}." in drawing.caption, name
        assert drawing.caption.endswith(f"Profile {made.name}."), name
        record = json.loads(drawing.png.with_suffix(".json").read_text())
        assert record["source_runs"][0].startswith(f"runs/{made.name}/{D}/")
    assert "n = 2 pairs (2 unordered), test set, 2 seeds of the networks" in found["dice"].caption
    assert "validation set" in found["tuning"].caption.lower()
    assert "test set, 2 seeds of the extractors" in found["optimisation"].caption

    small = PIL.Image.open(io.BytesIO(found["sample-detail"].small(300)))
    assert small.width == 300
    monkeypatch.setattr(drawn, "_of_networks", lambda *_: pytest.fail("drawn again"))
    assert drawings(made, D) == found
    publish.publish(made, D, tmp_path)
    read = drawings(Published(D, tmp_path), D)
    assert {name: one.caption for name, one in read.items()} == {name: one.caption for name, one in found.items()}
