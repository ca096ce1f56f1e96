"""Frames made alike: size and encoding of a file cannot be told from its crops any more."""

from functools import cache

import av
import cv2
import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from raydistal.errors import DecodeError, UserError
from raydistal.faces.crop import resize
from raydistal.faces.equalize import Equalizer
from raydistal.faces.look import look
from raydistal.pipelines import extract
from raydistal.video.decode import Frame

OPTIONS = {
    "detector": "none",
    "scale_factor": 1.2,
    "min_neighbors": 5,
    "min_face": 0.1,
    "margin": 0.3,
    "size_px": 96,
    "crops": "none",
}


def crop_of(path, **options):
    row = look(str(path), "v", "even:1", **OPTIONS | options)
    return row["pixels"].combine_chunks().flatten().flatten().to_numpy().reshape(96, 96, 3)


@cache
def photograph(seed, size_px=400):
    """Noise that is smooth at several scales, with an edge: (S, S, 3) uint8, BGR as cv2 writes it."""
    rng = np.random.default_rng(seed)
    layers = [rng.normal(scale=step, size=(size_px // step, size_px // step, 3)) for step in (2, 8, 40)]
    smooth_HWC = 128 + sum(cv2.resize(layer, (size_px, size_px), interpolation=cv2.INTER_CUBIC) for layer in layers)
    cv2.rectangle(smooth_HWC, *rng.integers(0, size_px, (2, 2)).tolist(), (200, 90, 40), -1)
    return np.clip(smooth_HWC, 0, 255).astype(np.uint8)


def test_the_centre_square_scaled_down_and_compressed_once():
    rgb_HWC = photograph(0)[:300]
    frame = Frame(3, 0.5, av.VideoFrame.from_ndarray(rgb_HWC, format="rgb24"))
    made = Equalizer.parse("128:80")(frame)
    square_HWC = resize(rgb_HWC[:, 50:350], 128)
    jpeg = cv2.imencode(".jpg", square_HWC[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 80])[1]
    assert (made.index, made.pts_s) == (3, 0.5)
    np.testing.assert_array_equal(made.rgb(), cv2.imdecode(jpeg, cv2.IMREAD_COLOR)[..., ::-1])


def test_boxes_stay_in_source_pixels(tmp_path):
    cv2.imwrite(str(tmp_path / "a.png"), photograph(0)[:300])
    row = look(str(tmp_path / "a.png"), "v", "even:1", **OPTIONS, equalize="128:80")
    assert row["box_xyxy_px"].to_pylist() == [[[50, 0, 350, 300]]]


def test_a_frame_too_small_is_refused(tmp_path):
    cv2.imwrite(str(tmp_path / "a.png"), photograph(0)[:100])
    with pytest.raises(DecodeError, match="shorter side of 100 pixels is less than --equalize 128"):
        crop_of(tmp_path / "a.png", equalize="128:80")


@pytest.mark.parametrize("text", ["512", "512:0", "512:101", "8:90", "a:b", "512:90:1"])
def test_bad_setting(text):
    with pytest.raises(UserError, match="such as 512:90"):
        extract.Faces(equalize=text)


def test_it_is_part_of_the_tables_settings():
    plain = extract.result_settings(extract.Config(out="/run"))
    asked = extract.result_settings(extract.Config(out="/run", faces=extract.Faces(equalize="512:90")))
    assert asked == plain | {"equalize": "512:90"}
    assert "equalize" not in plain  # tables of before go on


def test_video_frames_as_well(make_clip):
    path = make_clip("clip.mkv", "ffv1", pix_fmt="bgr0", num_frames=1)  # 96 x 64
    with av.open(str(path)) as container:
        first = next(container.decode(video=0)).to_ndarray(format="rgb24")
    jpeg = cv2.imencode(".jpg", resize(first[:, 16:80], 48)[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 90])[1]
    expected = resize(cv2.imdecode(jpeg, cv2.IMREAD_COLOR)[..., ::-1], 96)
    np.testing.assert_array_equal(crop_of(path, equalize="48:90"), expected)


def traces(crop_HWC):
    """What tells compression and scaling: steps between neighbours at each place of a grid of 8, and their fineness."""
    luma_HW = crop_HWC.astype(float).mean(axis=2)
    step_HW = np.abs(np.diff(luma_HW, n=2, axis=1))
    power_K = np.abs(np.fft.rfft(luma_HW - luma_HW.mean(), axis=1)).mean(axis=0)
    colour_HW = np.abs(np.diff(crop_HWC[..., 0].astype(float) - crop_HWC[..., 1], axis=1))
    at_grid = [step_HW[:, start::8].mean() for start in range(8)]
    return np.log(1e-3 + np.array([*at_grid, colour_HW.mean(), *power_K[1::6]]))


def how_well_format_tells_class(folder, equalize):
    """AUC of a linear classifier of traces on other pictures: large TIFF files against small JPEG ones of the same."""
    rows = []
    for seed in range(60):
        picture = photograph(seed)
        cv2.imwrite(str(folder / f"{seed}.tif"), picture)
        small = cv2.resize(picture, (280, 280), interpolation=cv2.INTER_AREA)
        cv2.imwrite(str(folder / f"{seed}.jpg"), small, [cv2.IMWRITE_JPEG_QUALITY, 75])
        rows += [traces(crop_of(folder / f"{seed}.{suffix}", equalize=equalize)) for suffix in ("tif", "jpg")]
    features_ND, label_N = np.array(rows), np.arange(len(rows)) % 2
    model = make_pipeline(StandardScaler(), LogisticRegression(C=1.0)).fit(features_ND[:80], label_N[:80])
    return roc_auc_score(label_N[80:], model.decision_function(features_ND[80:]))


@pytest.mark.slow
def test_format_and_size_no_longer_tell_the_class(tmp_path):
    without, with_ = (how_well_format_tells_class(tmp_path, equalize) for equalize in ("", "128:70"))
    assert without > 0.85
    assert with_ < 0.7


def test_tiff_png_and_jpeg_of_one_content_give_nearly_the_same_crop(tmp_path):
    picture = photograph(7)
    crops = []
    for name in ("a.tif", "a.png", "a.jpg"):
        cv2.imwrite(str(tmp_path / name), picture)  # JPEG of quality 95
        crops.append(crop_of(tmp_path / name, equalize="128:80").astype(int))
    np.testing.assert_array_equal(crops[0], crops[1])
    assert np.abs(crops[0] - crops[2]).mean() < 1.5
