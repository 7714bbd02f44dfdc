"""The imaging pipeline's processor: uploaded DICOM files to indexed instances."""

from __future__ import annotations

from infra.object_store import FolderStore
from infra.settings import Settings
from schemas.imaging import IMAGING_INGEST
from streams.decide import LogicFactory
from streams.imaging.ingest import ImagingIngest
from streams.imaging.sandbox import Sandbox


def _ingest() -> ImagingIngest:
    return ImagingIngest(FolderStore(Settings.load().object_store), Sandbox().examine)


PROCESSORS: dict[str, LogicFactory] = {IMAGING_INGEST.name: _ingest}
