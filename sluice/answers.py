"""The objects that the client returns, under one name for those who import them."""

from shared.rest_answers import Dataset, Evaluation, Run, Sample, Step, StreamEvent

__all__ = ["Dataset", "Evaluation", "Run", "Sample", "Step", "StreamEvent"]
