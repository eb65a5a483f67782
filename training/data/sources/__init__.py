"""Any face data set as a stream of records: see `docs/data.md`."""

from .columns import ColumnMap, guess_columns
from .registry import SOURCES, Source, open_faces
from .stream import BrokenSampleError, BrokenSamples, FaceStream, FaceTable, TooManyBrokenSamplesError


__all__ = [
    "SOURCES",
    "BrokenSampleError",
    "BrokenSamples",
    "ColumnMap",
    "FaceStream",
    "FaceTable",
    "Source",
    "TooManyBrokenSamplesError",
    "guess_columns",
    "open_faces",
]
