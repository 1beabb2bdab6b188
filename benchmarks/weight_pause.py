"""A model's folder -> versions of it in a real SGLang under load, and the pause that requests see:
`python -m benchmarks.weight_pause`.

The engine is launched and updated by the sidecar's own code, the trainer's publisher has a model of the same shape
with random weights: on one CPU, or the trainer on the first GPU and the engine on the second.
"""

import argparse
import asyncio
import json
import multiprocessing
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from benchmarks.own_redis import free_port, own_redis_url
from benchmarks.request_load import Arrivals, LoadShape, keep_busy
