"""Which GPU, from which cloud, for which model: the first stage of the course (notebook 00).

``prices`` has the offers of four clouds in one table, ``models`` the shape of a model and how vLLM
serves it, and ``sizing`` works out on paper what fits on a GPU and how fast it can go. Facts come
from dated tables in ``assets/``, each row with its source. Nothing here rents or measures.
"""

from helpers.choose import models, prices, sizing

__all__ = ["models", "prices", "sizing"]
