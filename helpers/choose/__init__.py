"""Which GPU, from which cloud, for which model: the first stage of the course (notebook 00).

``prices`` has the offers of four clouds in one table, ``models`` the shape of a model and how vLLM
serves it, ``gpus`` their data sheets, ``sizing`` works out on paper what fits on a GPU and how fast
it can go, and ``api_prices`` sets a rented server beside what an API charges. Facts come from dated
tables, each row with its source. Nothing here rents or measures.
"""

from helpers.choose import api_prices, gpus, models, prices, sizing

__all__ = ["api_prices", "gpus", "models", "prices", "sizing"]
