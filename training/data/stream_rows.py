"""Training rows of both tasks from a stream of faces that is too large to be read through beforehand."""

import inspect
from collections.abc import Iterator
from typing import Any

import torch.utils.data

from .rows import FaceRows
from .sources import FaceStream, open_faces


class StreamedRows(torch.utils.data.IterableDataset):
    """
    What [`FaceRows`] makes of each record, as the records come: a text-to-image row, then an understanding row, so
    that batches hold both tasks. It has no length: give `max_steps`.

    One process reads the stream and hands the others their part, unless `stream` is a part of its own
    ([`FaceStream.split_by_node`]). With workers, each reads shards of its own.

    Args:
        stream ([`FaceStream`]): The faces.
        passes (`int`, *optional*, defaults to 1): How often the stream is read; each time in another order and with
            other words, if these are made of labels.
        seed (`int`, *optional*, defaults to 0): Seed of the words.
        caption_share (`float`, *optional*), max_questions (`int`, *optional*): As for [`FaceRows`].
    """

    def __init__(self, stream: FaceStream, passes: int = 1, seed: int = 0, **options: Any):
        super().__init__()
        self.stream, self.passes, self.seed, self.options = stream, passes, seed, options
        self._state: dict[str, Any] | None = None
        self._pass = 0

    def __iter__(self) -> Iterator[dict[str, Any]]:
        first, self._pass = self._pass, 0
        for number in range(first, self.passes):
            self._pass = number
            self.stream.set_epoch(number)
            if self._state is not None:
                self.stream.load_state_dict(self._state)
                self._state = None
            for record in self.stream:
                rows = FaceRows([record], seed=f"{self.seed}-{number}-{record.id}", **self.options)
                yield from (rows[place] for place in range(len(rows)))
        self._pass = 0

    def state_dict(self) -> dict[str, Any]:
        """The place in the stream: after the last record of which all rows were taken, or at it."""
        return {"pass": self._pass, "stream": self.stream.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a place that `state_dict` gave."""
        self._pass, self._state = state["pass"], state["stream"]


def faces(
    path: str, limit: int | None = None, streaming: bool = False, shuffle_buffer: int = 1000, **options: Any
) -> Any:
    """
    The faces of a training configuration, `data.source: faces`.

    Args:
        path (`str`): The data set, the `source` of [`open_faces`].
        limit (`int`, *optional*): Most samples to read.
        streaming (`bool`, *optional*, defaults to `False`):
            Whether samples are read while training goes on, shuffled within a buffer. Otherwise all are read and
            checked first, kept as they are stored, and shuffled as a whole.
        shuffle_buffer (`int`, *optional*, defaults to 1000): Rows in that buffer.
        options: `split`, `config`, `columns`, `images`, `max_broken`, `seed` of [`open_faces`]; when streaming also
            `passes`, `caption_share`, `max_questions`.

    Returns:
        [`FaceTable`] or [`StreamedRows`].
    """
    row_options = {name: options.pop(name) for name in ("passes", "caption_share", "max_questions") if name in options}
    try:
        inspect.signature(open_faces).bind(path, **options)
    except TypeError as error:
        raise ValueError(f"data.source='faces' does not take {options}: {error}") from error
    stream = open_faces(path, **options)
    if not streaming:
        if row_options:
            raise ValueError(f"{min(row_options)} belongs beside `train`, not into it, where faces are not streamed")
        return stream.table(limit)
    if limit is not None:
        stream = stream.take(limit)
    return StreamedRows(stream.shuffle(shuffle_buffer), **{"passes": 1_000_000} | row_options)
