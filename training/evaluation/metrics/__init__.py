"""
The metrics, one in each file, as modules of `evaluate`: instantiate a class and call `compute`.

```python
>>> from unif2ace.training.evaluation.metrics import AnswerAccuracy
>>> AnswerAccuracy().compute(predictions=["Yes."], references=["yes"])["accuracy"]
1.0
```
"""

from .answer_accuracy import AnswerAccuracy
from .attribute_accuracy import AttributeAccuracy
from .base import FaceMetric
from .caption_attributes import CaptionAttributes
from .choice_accuracy import ChoiceAccuracy
from .clip_score import ClipScore
from .code_entropy import CodeEntropy
from .conversation_score import ConversationScore
from .description_score import DescriptionScore
from .diversity import Diversity
from .frechet_distance import FrechetDistance
from .identity_similarity import IdentitySimilarity
from .kernel_distance import KernelDistance
from .memorisation import Memorisation
from .vlm_score import VlmScore
from .vqa_score import VqaScore


__all__ = [
    "AnswerAccuracy",
    "AttributeAccuracy",
    "CaptionAttributes",
    "ChoiceAccuracy",
    "ClipScore",
    "CodeEntropy",
    "ConversationScore",
    "DescriptionScore",
    "Diversity",
    "FaceMetric",
    "FrechetDistance",
    "IdentitySimilarity",
    "KernelDistance",
    "Memorisation",
    "VlmScore",
    "VqaScore",
]
