"""
The metrics: classes of `evaluate` that also say how sure they are. Instantiate one and call `compute`:

```python
>>> from unif2ace.training.evaluation.metrics import AnswerAccuracy
>>> AnswerAccuracy().compute(predictions=["Yes."], references=["yes"])["accuracy"]
1.0
```

`evaluate.load` reaches each by its name through one script, as `evaluate.load("glue", "mrpc")` does; a copy of the
script in a Space on the Hub does the same for people who have the package.

```python
>>> import evaluate
>>> from unif2ace.training.evaluation.metrics import SCRIPT
>>> evaluate.load(SCRIPT, "answer_accuracy").compute(predictions=["Yes."], references=["yes"])["accuracy"]
1.0
```
"""

from pathlib import Path

from .base import FaceMetric
from .distances import FrechetDistance, IdentitySimilarity, KernelDistance, Memorisation
from .diversity import CodeEntropy, Diversity
from .fit import AttributeAccuracy, ClipScore, VqaScore
from .judged import ConversationScore, DescriptionScore, VlmScore
from .text import AnswerAccuracy, CaptionAttributes, ChoiceAccuracy


SCRIPT = str(Path(__file__).parent / "unif2ace_metrics.py")
"""What `evaluate.load` takes, with the name of a metric."""

METRICS: dict[str, type[FaceMetric]] = {
    "answer_accuracy": AnswerAccuracy,
    "attribute_accuracy": AttributeAccuracy,
    "caption_attributes": CaptionAttributes,
    "choice_accuracy": ChoiceAccuracy,
    "clip_score": ClipScore,
    "code_entropy": CodeEntropy,
    "conversation_score": ConversationScore,
    "description_score": DescriptionScore,
    "diversity": Diversity,
    "frechet_distance": FrechetDistance,
    "identity_similarity": IdentitySimilarity,
    "kernel_distance": KernelDistance,
    "memorisation": Memorisation,
    "vlm_score": VlmScore,
    "vqa_score": VqaScore,
}
"""Name -> class."""

__all__ = ["METRICS", "SCRIPT", "FaceMetric", *(metric.__name__ for metric in METRICS.values())]
