import json
import pathlib

from examples import quickstart


def test_folders_of_the_same_name_have_different_names():
    first, second = (quickstart.own_name(pathlib.Path(f"/{person}/images")) for person in ("ann", "bob"))
    assert first != second
    assert first.startswith("finetune-images-") and second.startswith("finetune-images-")
    assert quickstart.own_name(pathlib.Path("/ann/images")) == first


def test_what_is_held_out_is_said(tmp_path):
    splits = {"train": {"written": 1200}, "validation": {"written": 800}}
    (tmp_path / "manifest.json").write_text(json.dumps({"splits": splits}))
    assert "Held out: 800 of 2,000 images (the folder's own)" in quickstart.held_out(tmp_path, "the folder's own")


def test_a_validation_folder_is_found(tmp_path):
    for folder in ("invalid", "valid"):  # classes
        (tmp_path / "classes" / folder).mkdir(parents=True)
    assert not quickstart.has_validation(tmp_path / "classes")
    for folder in ("train/cats", "Val/cats"):
        (tmp_path / "splits" / folder).mkdir(parents=True)
    assert quickstart.has_validation(tmp_path / "splits")
    (tmp_path / "splits" / "cats").mkdir()  # which the build refuses
    assert not quickstart.has_validation(tmp_path / "splits")
