import numpy as np
import pytest
import torch

from raydistal.detector import runtime, zoo
from raydistal.detector.scoring import Scorer, decode_crops
from raydistal.errors import UserError
from raydistal.faces import crop


def crops(num, size_px, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (num, size_px, size_px, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def detector():
    return zoo.create("timm:test_resnet", "random", seed=0, input_px=32)


@pytest.mark.parametrize("batch_size", [1, 4, 64])
def test_probabilities_do_not_depend_on_the_batch(detector, batch_size):
    crops_NHWC = crops(9, 32)
    detector.eval()
    with torch.inference_mode():
        expected = [torch.sigmoid(detector(torch.tensor(crops_NHWC[n : n + 1]))).item() for n in range(9)]
    found = Scorer(detector, batch_size=batch_size)(crops_NHWC)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert len(set(found.tolist())) == 9


def test_no_crops_and_a_detector_that_was_just_trained(detector):
    scorer = Scorer(detector.train())
    assert not detector.training
    assert scorer(np.empty((0, 32, 32, 3), np.uint8)).shape == (0,)


def test_out_of_memory_says_what_to_lower(detector, monkeypatch):
    scorer = Scorer(detector, batch_size=5)

    def fail(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(scorer, "logits", fail)
    with pytest.raises(UserError, match=r"with 5 faces at once\. Lower --batch-size"):
        scorer(crops(2, 32))


def test_an_exported_detector_scores_the_same(exported):
    models = [runtime.load(str(exported / name))[0] for name in ("detector", "onnx")]
    expected, found = (Scorer(model, batch_size=4)(crops(9, 32)) for model in models)
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert len(set(found.tolist())) == 9


def test_logits_of_any_size(detector, monkeypatch):
    scorer = Scorer(detector)
    monkeypatch.setattr(scorer, "logits", lambda crops_NHWC: np.array([-1e4, 0.0, 1e4], np.float32))
    assert scorer(crops(3, 32)).tolist() == [0.0, 0.5, 1.0]


def test_crops_are_decoded_once_for_all_sizes():
    whole = crops(3, 40)
    images = [b"", *(crop.encode(image, "png") for image in whole), b"no image"]
    found, places = decode_crops(images, [40, 32])
    assert places == [1, 2, 3]
    np.testing.assert_array_equal(found[40], whole)
    np.testing.assert_array_equal(found[32], [crop.decode(image, 32) for image in images[1:4]])
    found, places = decode_crops([b"", b"no image"], [40, 32])
    assert (found[40].shape, found[32].shape, places) == ((0, 40, 40, 3), (0, 32, 32, 3), [])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_on_cuda_probabilities_are_nearly_the_same(detector):
    crops_NHWC = crops(9, 32)
    expected = Scorer(detector)(crops_NHWC)
    np.testing.assert_allclose(Scorer(detector, "cuda")(crops_NHWC), expected, atol=0.02)
