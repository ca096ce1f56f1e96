"""All tables of a run, or a detector -> OUT/report: one HTML page that needs nothing else, and its figures as PNG."""

from dataclasses import dataclass
from typing import Any

from raydistal import storage
from raydistal.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Config:
    """Show what a run found, or how a detector learnt, on one page."""

    out: str
    """Run folder or detector directory, local or s3://...: reads the tables in it, writes OUT/report."""
    num_faces: int = 24
    """Faces on each contact sheet, half of each class."""

    def __post_init__(self) -> None:
        if not 2 <= self.num_faces <= 200:
            raise UserError(f"--num-faces must be from 2 to 200, not {self.num_faces}")


def run(config: Config) -> dict[str, Any]:
    """Writes the page and returns a summary. Tables that are not there yet are left out.

    Raises:
        UserError: there is no `videos` table, and no detector.
    """
    from raydistal.report import contents, distillation, page, training

    if storage.exists(storage.join(config.out, "detector.json")):
        return {"report": training.write(storage.absolute(config.out))}
    found = contents.read(storage.absolute(config.out), config.num_faces)
    pictures = distillation.draw(found)
    path = page.write(config.out, "distillation.html.j2", pictures, **distillation.values(found))
    return {"report": path, "figures": len(pictures), "tables": list(found.infos)}
