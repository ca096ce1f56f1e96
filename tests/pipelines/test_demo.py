"""The demo before its run; the run itself is in test_guide.py."""

import pytest

from raydistal.errors import UserError
from raydistal.features import backbones
from raydistal.pipelines import demo, extract


def test_random_weights_stand_in_for_those_of_imagenet_only(monkeypatch, tmp_path, capsys):
    def offline(name):
        raise UserError("no internet")

    monkeypatch.setattr(backbones, "imagenet_state", offline)
    found = demo.with_weights(extract.Features(backbone="timm:test_resnet"))
    assert found == extract.Features(backbone="timm:test_resnet", weights="random")
    told = capsys.readouterr().err
    assert "no internet" in told
    assert "RANDOM weights" in told
    for wrong in ({"weights": "/no/such/file"}, {"backbone": "vgg61"}):
        features = extract.Features(**({"backbone": "timm:test_resnet"} | wrong))
        with pytest.raises(UserError, match=next(iter(wrong.values()))):
            demo.run(demo.Config(out=str(tmp_path / "demo"), features=features))
        assert not (tmp_path / "demo").exists()
