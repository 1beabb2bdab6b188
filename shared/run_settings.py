"""What one run is: its model, data, rollouts, rewards, training and evaluation, as written in one TOML file."""

from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, model_validator

from shared.check_engine import engine_problems
from shared.check_kind import unused_settings
from shared.check_lora import lora_problems
from shared.check_name import Name
from shared.check_rl import rl_problems
from shared.check_trainer import trainer_problems
from shared.lora_settings import LoraSettings
from shared.metrics_settings import MetricsSettings, metrics_problems
from shared.settings import Settings
from shared.trainer_settings import TrainerSettings

Positive = Annotated[int, Field(gt=0)]
Seconds = Annotated[float, Field(gt=0)]


def _check_top_k(k: int) -> int:
    if k < 1 and k != -1:
        raise ValueError("write 1 or more, or -1 for all tokens")
    return k


class ModelSettings(Settings):
    """The model that the run starts from."""

    path: str
    """Folder of a Hugging Face checkpoint: config.json, safetensors and tokenizer files."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Precision of the forward pass in the trainer and of the published weights; the optimizer keeps float32."""
    trust_remote_code: bool = False
    """Run Python code that comes with the checkpoint."""


class DatasetShare(Settings):
    """One dataset of the mix."""

    name: str
    weight: Annotated[float, Field(ge=0)] = 1.0
    """Share of the groups that come from it, relative to the other datasets; 0 pauses it."""


class DataSettings(Settings):
    """Which rows become prompts, and in which order."""

    datasets: list[DatasetShare] = []
    """The mix, by the names under which the datasets were pushed; only a run of 0 steps does without."""
    shuffle: bool = True
    """Go through each dataset in a new seeded order every epoch; false keeps the order of the file."""
    chat_template: bool = False
    """Wrap prompts that are plain text as one user message; chat messages always get the template."""


class SamplingSettings(Settings):
    """How the engine samples one attempt."""

    temperature: Annotated[float, Field(ge=0)] = 1.0
    """Divides the logits; 0 takes the likeliest token (evaluation only)."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Sample from the likeliest tokens that together have this probability."""
    top_k: Annotated[int, AfterValidator(_check_top_k)] = -1
    """Sample from the k likeliest tokens; -1 for all."""
    max_new_tokens: Positive = 256
    """Longest response, in tokens."""
    stop: list[str] = []
    """Strings that end the response; they stay in it."""
    stop_token_ids: list[int] = []
    """Token ids that end the response, beside the model's own."""


class RolloutSettings(Settings):
    """From prompts to attempts."""

    group_size: Positive = 8
    """Attempts for each prompt."""
    groups_per_step: Positive = 32
    """Groups that one optimizer step trains."""
    max_staleness: Annotated[int, Field(ge=0)] = 0
    """Versions that generation may run ahead of training. 0 is synchronous, on-policy training."""
    staleness_policy: Literal["train", "drop", "wait"] = "train"
    """A group that took longer than max_staleness versions: train it and count it, drop it, or never let it happen:
    steps train groups in the order of their release and wait for the slowest."""
    selection: str = "fifo"
    """Which ready groups a step takes: fifo, freshest, priority (highest `priority` in the row's metadata), or
    `module:function`."""
    over_sampling: Annotated[int, Field(ge=0)] = 0
    """Extra groups that may be under way beyond the admission bound, so that a step need not wait for its slowest."""
    max_stored_mib: Positive = 4096
    """MiB of attempts in Redis beyond which groups are released for the next step only, once trained ones have left."""
    partial_tokens: Annotated[int, Field(ge=0)] = 512
    """Tokens after which an unfinished attempt is stored in Redis, for another worker to continue; 0 stores none."""
    partial_seconds: Seconds = 10
    """Seconds after which an unfinished attempt is stored though it has fewer new tokens."""
    concurrency: Positive = 64
    """Groups that one rollout worker generates at once."""
    request_deadline_s: Seconds = 600
    """Seconds after which a generation request counts as failed; for attempts that are stored, seconds without a new
    token."""
    generate: str = ""
    """Plugin `module:function` that generates one group; empty for the built-in single turn."""
    sampling: SamplingSettings = SamplingSettings()


class EngineSettings(Settings):
    """The SGLang engines."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto takes cuda where a GPU is there."""
    server_args: dict[str, Any] = {}
    """Any field of SGLang's ServerArgs by its name, such as mem_fraction_static = 0.8."""
    update_mode: Literal["retract", "abort", "in_place", "drain"] = "retract"
    """What happens to requests in flight while weights change; retract recomputes their cache and is exact;
    drain lets them finish first, for at most half of weights.update_deadline_s."""
    start_deadline_s: Seconds = 300
    """Seconds that an engine may take from launch to its first healthy answer."""


class RewardSettings(Settings):
    """How attempts are scored."""

    type: Literal["exact_match", "contains", "math", "plugin", "remote"] = "exact_match"
    """exact_match, contains and math compare with the label; plugin and remote are your own."""
    plugin: str = ""
    """`module:function` for type plugin: `async def score(rollout: Rollout) -> float`."""
    url: str = ""
    """Address for type remote: scores are asked for by POST."""
    batch_size: Positive = 64
    """Most attempts in one request to a remote reward."""
    deadline_s: Seconds = 30
    """Seconds for one scoring call."""
    max_tries: Positive = 5
    """Tries of one call to a remote reward before its attempts wait for redelivery."""
    group_filter: str = ""
    """`keep_all` when empty, `nonzero_std`, or `module:function` that says whether a complete group is trained."""


class WeightSettings(Settings):
    """How versions travel from the trainer to the engines."""

    transport: Literal["broadcast", "ipc", "disk", "delta"] = "broadcast"
    """broadcast: from memory to memory, over a process group, NCCL between GPUs and gloo between CPUs; ipc: engines on
    the trainer's machine copy out of its memory, by CUDA IPC on a GPU, so both may share one; disk: as safetensors in a
    folder that both sides see; delta: the same, of most versions only what changed."""
    memory: Literal["kept", "turns"] = "kept"
    """ipc: kept: trainer and engine of one GPU keep their parts of its memory; turns: all of it is the engine's while
    it generates and the trainer's while it trains, which is for synchronous runs."""
    folder: str = ""
    """disk, delta: path or fsspec URL of the folder that trainer and engines share; empty: `weights` in the run's."""
    local_folder: str = ""
    """disk, delta: folder of each engine's host for a copy of the newest version, which its engines share; empty: delta
    keeps it in `<home>/engine_weights`, as disk does with a URL; a path that is shared, disk reads in place."""
    keep_versions: Positive = 2
    """disk, delta: newest versions that stay in the folder, with all that they build on."""
    full_every: Positive = 20
    """delta: versions from one that is written in full to the next; the first one of every trainer is, too."""
    bucket_mib: Positive = 512
    """Size of one broadcast, of one piece of memory that is lent, and of one safetensors file."""
    staging: Literal["auto", "device", "host"] = "auto"
    """Where the trainer keeps two copies of the weights for engines: in the memory of its GPU, or pinned in the host's;
    auto takes the GPU's if they need less than a third of what is free before the first step."""
    enrol_deadline_s: Seconds = 30
    """Seconds that engines have to enrol for a version; who is late joins the next one."""
    update_deadline_s: Seconds = 120
    """Seconds after those in which all enrolled engines have to prove the version, wave after wave."""
    max_unavailable: Annotated[int, Field(ge=0)] = 0
    """Engines that are paused for a version at the same time, while the others serve the one before; 0 for all."""
    engines_per_group: Positive = 1
    """broadcast: engines that share a process group. They get a version in the time that one takes, and wait paused for
    each other; one that dies in the middle takes the others of its group along where they have GPUs."""
    quantization: Literal["none", "fp8"] = "none"
    """fp8: versions have the matrices of the decoder's layers in blocks of 128 x 128 numbers of 8 bits, which engines
    on GPUs serve; training stays in bfloat16. none: everything in model.dtype."""
    modules_to_not_convert: list[str] = []
    """fp8: modules that stay in bfloat16 beside those that the format leaves (head, embeddings, norms,
    routers), such as `model.layers.0` or `o_proj`."""


class EvalSettings(Settings):
    """Held-out rows, answered by a pinned weight version."""

    datasets: list[str] = []
    """Names of held-out datasets; all their rows are answered each time."""
    every: Positive = 10
    """Versions between evaluations; version 0 and the last one are always evaluated."""
    group_size: Positive = 1
    """Attempts for each row."""
    sampling: SamplingSettings = SamplingSettings(temperature=0.0)
    deadline_s: Seconds = 300
    """Seconds that the next version, or the end of the run, waits for a running evaluation; a run of 0 steps is there
    for its evaluation and waits for as long as it takes."""


class DeliverySettings(Settings):
    """How entries of the streams are retried."""

    lease_s: Seconds = 30
    """Seconds after which the work of a silent worker goes to another one."""
    max_deliveries: Positive = 5
    """Deliveries after which an entry goes to the dead letters."""


class BranchSettings(Settings):
    """Where a run goes on from a step of another one."""

    run: str
    """The run that it comes from."""
    step: Annotated[int, Field(ge=0)]
    """The step of that run whose weights, optimizer and schedule this run begins with."""


class RunSettings(Settings):
    """One run."""

    name: Name
    """Unique id of the run: 1 to 64 lower-case letters, digits, dots, dashes and underscores, no mark at the front."""
    kind: Literal["rl", "sft", "dpo"] = "rl"
    """Reinforcement learning, supervised fine-tuning on the labels of the rows, or direct preference optimization on
    rows with a chosen and a rejected answer."""
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    """Seed of the order of rows and of the trainer."""
    model: ModelSettings
    data: DataSettings = DataSettings()
    rollout: RolloutSettings = RolloutSettings()
    engine: EngineSettings = EngineSettings()
    reward: RewardSettings = RewardSettings()
    trainer: TrainerSettings
    lora: LoraSettings = LoraSettings()
    metrics: MetricsSettings = MetricsSettings()
    weights: WeightSettings = WeightSettings()
    eval: EvalSettings = EvalSettings()
    delivery: DeliverySettings = DeliverySettings()
    branch: BranchSettings | None = None
    """Set by `sluice branch`."""

    @model_validator(mode="after")
    def _goes_together(self) -> "RunSettings":
        problem = next(self._problems(), None)
        if problem:
            raise ValueError(problem)
        return self

    def _problems(self) -> Iterator[str]:
        yield from rl_problems(self) if self.kind == "rl" else self._row_problems()
        if not (self.data.datasets or self.evaluates_only):
            yield (
                'data.datasets names no dataset to train on; write datasets = [{ name = "sums" }], by the names under'
                " which they were pushed"
            )
        rollout = self.rollout
        yield from trainer_problems(self.trainer, self.kind, rollout.group_size, rollout.groups_per_step)
        yield from lora_problems(self)
        yield from engine_problems(self.engine.server_args)
        yield from metrics_problems(self.metrics)

    def _row_problems(self) -> Iterator[str]:
        """Of kinds whose answers are in the rows: neither engines nor rewards."""
        if self.evaluates_only:
            yield (
                f"trainer.steps is 0, and a run of kind {self.kind} has no engines to evaluate its model with; write"
                " the steps that it trains, or evaluate in a run of kind rl"
            )
        if self.eval.datasets:
            yield f"eval.datasets needs engines, which a run of kind {self.kind} has not; evaluate in a run of kind rl"
        sections = {"rollout": self.rollout, "engine": self.engine, "reward": self.reward, "weights": self.weights}
        yield from unused_settings(self.kind, sections)

    @property
    def evaluates_only(self) -> bool:
        """The initial model is evaluated and nothing is trained."""
        return self.trainer.steps == 0

    @property
    def trained_datasets(self) -> list[DatasetShare]:
        """The mix that is trained; a run that only evaluates reads nothing of it."""
        return [] if self.evaluates_only else self.data.datasets

    @property
    def datasets(self) -> set[str]:
        """The names of all datasets that the run reads."""
        return {*(share.name for share in self.trained_datasets), *self.eval.datasets}

    @property
    def attempts_per_group(self) -> int:
        """A pair is a group of two, the chosen answer first."""
        return {"sft": 1, "dpo": 2}.get(self.kind, self.rollout.group_size)
