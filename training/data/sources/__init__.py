"""Any face data set as a stream of records: see `docs/data.md`."""

from .broken import BrokenSampleError, BrokenSamples, TooManyBrokenSamplesError
from .columns import ColumnMap, guess_columns
from .registry import SOURCES, Source, open_faces
from .stream import FaceStream, FaceTable


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
