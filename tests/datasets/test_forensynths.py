from raydistal.datasets import forensynths
from raydistal.datasets.layout import Entry


def test_official_layout():
    files = [
        "test/crn/0_real/00000000.png",
        "test/crn/1_fake/00000000.png",
        "test/progan/train/1_fake/00001.png",
        "train/airplane/0_real/1.png",
        "train/train/1_fake/2.png",
        "val/progan/tvmonitor/1_fake/3.png",
        "val/progan/tvmonitor/4.png",
    ]
    assert forensynths.matches(files)
    real, crn, *_ = files
    assert forensynths.read("/data", files) == (
        [
            Entry(path=real, label=0, group=real, split="test"),
            Entry(path=crn, label=1, group=crn, method="crn", split="test"),
            Entry(path=files[2], label=1, group=files[2], method="progan", split="test"),
            Entry(path=files[3], label=0, group=files[3], split="train"),
            Entry(path=files[4], label=1, group=files[4], method="progan", split="train"),
            Entry(path=files[5], label=1, group=files[5], method="progan", split="val"),
        ],
        [
            "1 videos or images lie outside 0_real/ and 1_fake/ and are left out: val/progan/tvmonitor/4.png",
        ],
    )


def test_a_part_of_it():
    """The folder of the test set, or of one generator: nothing tells the split."""
    files = ["stylegan/car/1_fake/a.png", "san/0_real/b.png", "train/1_fake/c.png", "1_fake/d.png"]
    entries, warnings = forensynths.read("/data", files)
    assert [(entry.label, entry.method, entry.split) for entry in entries] == [
        (1, "stylegan", None),
        (0, None, None),
        (1, "progan", None),  # ProGAN's trains
        (1, None, None),
    ]
    assert warnings == ["no train/, val/ or test/: images are split by ratio"]
