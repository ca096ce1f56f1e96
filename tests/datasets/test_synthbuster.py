import pytest

from raydistal.datasets import layout, splits, synthbuster
from raydistal.datasets.layout import Entry
from raydistal.errors import UserError


def test_fakes_are_paired_with_photographs_by_stem():
    files = [
        "RAISE_1k/r000da54ft.TIF",
        "RAISE_1k/r001d260dt.png",
        "synthbuster/dalle3/R000DA54FT.png",
        "synthbuster/glide/r000da54ft.png",
        "synthbuster/glide/r0aaaaaaat.png",
        "synthbuster/glide/preview.png",
        "synthbuster/prompts.csv",
    ]
    assert synthbuster.matches(files)
    one, other = "r000da54ft", "r001d260dt"
    assert synthbuster.read("/data", files) == (
        [
            Entry(path=files[0], label=0, group=one),
            Entry(path=files[1], label=0, group=other),
            Entry(path=files[2], label=1, group=one, method="dalle3", original=files[0]),
            Entry(path=files[3], label=1, group=one, method="glide", original=files[0]),
            Entry(path=files[4], label=1, group="r0aaaaaaat", method="glide"),
        ],
        [
            "1 fakes have no photograph of RAISE (r000da54ft in a folder named RAISE, or .TIF): "
            "synthbuster/glide/r0aaaaaaat.png",
            "1 videos or images are not named as RAISE names them (r000da54ft) and are left out: "
            "synthbuster/glide/preview.png",
        ],
    )


def test_the_innermost_folder_that_tells_counts():
    stem = "r000da54ft"
    photograph, fake, other = files = [f"raise/png/{stem}.png", f"raise/Glide/768/{stem}.png", f"glide/real/{stem}.png"]
    assert synthbuster.read("/data", [*files, f"photos/{stem}.tif"]) == (
        [
            Entry(path=photograph, label=0, group=stem),
            Entry(path=fake, label=1, group=stem, method="Glide", original=f"photos/{stem}.tif"),
            Entry(path=other, label=0, group=stem),
            Entry(path=f"photos/{stem}.tif", label=0, group=stem),
        ],
        [],
    )


@pytest.mark.parametrize("path", ["photos/r000da54ft.png", "flux/r000da54ft.png", "r000da54ft.png"])
def test_a_picture_of_unknown_origin_is_refused(path):
    with pytest.raises(UserError, match=f"/data/{path} is in none of the folders dalle2, dalle3, .* photographs real"):
        synthbuster.read("/data", ["RAISE/r000da54ft.TIF", path])


def test_a_photograph_and_its_fakes_share_a_split():
    files = [
        f"{folder}/r{number:08x}t.png" for number in range(20) for folder in ("real_RAISE_1k", "dalle2", "firefly")
    ]
    videos, _ = layout.to_table("/data", "synthbuster", synthbuster.read("/data", files)[0])
    videos, _ = splits.assign(videos, (0.7, 0.15, 0.15), seed=0)
    split_of = dict(zip(videos["video_id"].to_pylist(), videos["split"].to_pylist(), strict=True))
    pairs = [(row["split"], split_of[row["original_id"]]) for row in videos.to_pylist() if row["label"]]
    assert len(pairs) == 40
    assert all(one == other for one, other in pairs)
    assert set(split_of.values()) == {"train", "val", "test"}
