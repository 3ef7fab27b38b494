"""One file per kind of prediction, used alike by training, evaluation and serving."""
