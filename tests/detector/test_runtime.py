import json
import pickle
import shutil
import sys

import numpy as np
import pytest
import torch

from raydistal.detector import checkpoint, runtime
from raydistal.errors import UserError


def crops(num, size_px=32):
    return np.random.default_rng(0).integers(0, 256, (num, size_px, size_px, 3), dtype=np.uint8)


def test_trained_and_exported_say_the_same(exported):
    detector, about = runtime.load(str(exported / "detector"))
    assert about == checkpoint.load(str(exported / "detector"))[1]
    model, about = runtime.load(str(exported / "onnx"))
    assert (model.runtime, model.input_px, about["runtime"]) == ("onnx", 32, "onnx")
    assert about["digest"] != checkpoint.read_about(str(exported / "detector"))["digest"]
    with torch.inference_mode():
        expected = detector(torch.from_numpy(crops(5))).numpy()
    copied = pickle.loads(pickle.dumps(model))
    for start in (detector, model, copied):
        found = runtime.start(start)(crops(5))
        assert (found.dtype, found.shape) == (np.float32, (5,))
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    assert runtime.start(model)(crops(0)).shape == (0,)


def test_a_damaged_model_is_refused(exported, tmp_path):
    shutil.copytree(exported / "onnx", tmp_path / "bad")
    (tmp_path / "bad/model.onnx").write_bytes((exported / "int8/model.onnx").read_bytes())
    with pytest.raises(UserError, match=r"model\.onnx is not what detector\.json beside it was written for"):
        runtime.load(str(tmp_path / "bad"))
    (tmp_path / "bad/model.onnx").unlink()
    with pytest.raises(UserError, match=r"cannot read .*model\.onnx"):
        runtime.load(str(tmp_path / "bad"))
    about = json.loads((exported / "onnx/detector.json").read_text())
    (tmp_path / "bad/detector.json").write_text(json.dumps(about | {"runtime": "abacus"}))
    with pytest.raises(UserError, match=r"for the runtime 'abacus'; this raydistal knows torch, onnx, executorch"):
        runtime.load(str(tmp_path / "bad"))


def test_a_runtime_that_is_not_installed(monkeypatch):
    monkeypatch.setitem(sys.modules, "executorch.extension.pybindings", None)
    with pytest.raises(UserError, match=r"pip install 'raydistal\[executorch\]'"):
        runtime.start(runtime.Exported("executorch", b"", 32))
