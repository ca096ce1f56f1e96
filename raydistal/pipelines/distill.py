"""index, extract, select in a row: from a folder of videos to a distilled dataset."""

from dataclasses import dataclass, field
from typing import Any

from raydistal.pipelines import extract, index, select
from raydistal.pipelines.scaling import Budget
from raydistal.selection.ranking import Arrange
from raydistal.selection.uncertainty import Strategy


@dataclass(frozen=True, kw_only=True)
class Config:
    """Distil a folder of videos: index, extract and select in one go."""

    videos: str
    """Folder or manifest of labelled videos, local or s3://..."""
    out: str
    """Run folder, where all tables go."""
    ratio: float = 0.2
    """Share of the training videos to keep."""
    frames: int = 500
    """Representative frames to select, half of each class."""
    sample: str = "even:10"
    """Frames to sample: even:N, every:N, random:N or fps:R."""
    sample_fake: str = ""
    """Frames to sample from videos labelled fake; default: as --sample."""
    strategy: Strategy = "entropy"
    """How frames are scored."""
    arrange: Arrange = "frequency"
    """Order of the ranking: frequency (the paper), balanced, or groups."""
    faces: extract.Faces = field(default_factory=extract.Faces)
    features: extract.Features = field(default_factory=extract.Features)
    budget: Budget = field(default_factory=Budget)

    def __post_init__(self) -> None:
        # Settings that a later stage would refuse are refused here, before any work.
        self.stages()

    def stages(self) -> tuple[index.Config, extract.Config, select.Config]:
        """The configs of the three verbs."""
        return (
            index.Config(videos=self.videos, out=self.out),
            extract.Config(
                out=self.out,
                sample=self.sample,
                sample_fake=self.sample_fake,
                faces=self.faces,
                features=self.features,
                budget=self.budget,
            ),
            select.Config(
                out=self.out, ratio=self.ratio, frames=self.frames, strategy=self.strategy, arrange=self.arrange
            ),
        )


def run(config: Config) -> dict[str, Any]:
    """Runs the three and returns their summaries. Raises UserError as they do."""
    to_index, to_extract, to_select = config.stages()
    return {"index": index.run(to_index), "extract": extract.run(to_extract), "select": select.run(to_select)}
