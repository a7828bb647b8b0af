"""How closely numbers repeat: what the script compares."""

from conftest_tree import TREE, D
from tolerance import compared, made


def test_the_same_threads_give_the_same_bytes_and_another_making_is_told(profile, tmp_path):
    tree = {D: TREE[D] | {"ablations": {}, "robustness": {}}}
    profile(tree)
    makings = [made("mine", D, "mse", "ncc", tmp_path / name) for name in ("first", "again")]
    other = {
        what: {"digest": "", "values": [value + 0.01 for value in one["values"]]} for what, one in makings[0].items()
    }
    table = compared([*makings, other], D).set_index("what")
    assert list(table.index) == ["extractor seg", "network mse", "optimisation ncc"]
    assert table["again_equal"].all()
    assert table["difference"].round(9).eq(0.01).all()
    assert table["largest_of_one"].round(9).eq(0.01).all()
    assert list(table["n"]) == [4, 2, 2], "images, then pairs"
    assert not compared([makings[0], other, other], D)["again_equal"].any()
