from raydistal.datasets import wilddeepfake
from raydistal.datasets.layout import Entry


def test_official_layout():
    files = [
        "fake_test/12/fake/3/0007.png",
        "fake_test/12/fake/4/0001.png",
        "fake_test/9.tar.gz",
        "real train/12/0001.png",
        "real_train/cover.png",
        "extra/a.png",
    ]
    assert wilddeepfake.matches(files)
    assert wilddeepfake.read("/data", files) == (
        [
            Entry(path=files[0], label=1, group="fake_test/12", split="test"),
            Entry(path=files[1], label=1, group="fake_test/12", split="test"),
            Entry(path=files[3], label=0, group="real train/12", split="train"),
        ],
        [
            "1 archives are not unpacked: fake_test/9.tar.gz",
            "2 videos or images lie outside the four folders and are left out: extra/a.png, real_train/cover.png",
        ],
    )
