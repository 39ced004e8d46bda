import pytest
from PIL import Image

from examples import show_augmentation


@pytest.mark.slow
def test_draws_the_sheet(tmp_path, monkeypatch, capsys):
    picture = tmp_path / "sheet.png"
    monkeypatch.setattr(show_augmentation, "PICTURE", str(picture))
    show_augmentation.main([])
    assert capsys.readouterr().out == f"{picture}\n"
    with Image.open(picture) as image:
        assert image.size == (840, 1050)
        assert len(image.convert("RGB").getcolors(1 << 20)) > 100


def test_help_draws_nothing(capsys):
    with pytest.raises(SystemExit) as end:
        show_augmentation.main(["--help"])
    assert end.value.code == 0
    assert "RandAugment" in capsys.readouterr().out
