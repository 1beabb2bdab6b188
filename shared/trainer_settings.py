"""How a run learns, as written in its TOML file: advantages, loss, divergence, corrections, critic, optimizer."""

from typing import Annotated, Literal

from pydantic import Field

from shared.settings import Settings

Count = Annotated[int, Field(gt=0)]
Whole = Annotated[int, Field(ge=0)]
Rate = Annotated[float, Field(gt=0)]
Amount = Annotated[float, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]


class AdvantageSettings(Settings):
    """From rewards to advantages; docs/algorithms.md has the formulas."""

    estimator: str = "grpo"
    """grpo, rloo, reinforce_plus_plus, reinforce_plus_plus_baseline, ppo (with a critic), or `module:function`."""
    normalize_std: bool = True
    """grpo: divide by the standard deviation of the group's rewards; false is Dr. GRPO."""
    whiten: Literal["none", "step", "dataset"] = "none"
    """Give the trained tokens of a step, or of each dataset in it, mean 0 and variance 1."""
    gamma: Share = 1.0
    """reinforce_plus_plus and ppo: discount of what comes one token later."""
    gae_lambda: Share = 1.0
    """ppo: how far advantages look ahead before they rely on the critic; 1 relies on rewards alone."""


class LossSettings(Settings):
    """From advantages to the policy's loss."""

    type: str = "ppo_clip"
    """ppo_clip, gspo, cispo, or `module:function`."""
    clip_low: Rate | None = None
    """The ratio is clipped below at 1 - clip_low; when left out 0.2 for ppo_clip, 3e-4 for gspo, no bound for cispo."""
    clip_high: Rate | None = None
    """The ratio is clipped above at 1 + clip_high; when left out 0.2 for ppo_clip, 4e-4 for gspo, 4 for cispo."""
    dual_clip: Annotated[float, Field(gt=1)] | None = None
    """ppo_clip and gspo: the largest ratio that counts against a bad token; when left out there is none."""
    aggregation: Literal["token", "rollout", "constant"] = "rollout"
    """Mean over all trained tokens of the step; over attempts of each attempt's mean; or, by attempt, the sum divided
    by constant_length."""
    constant_length: Whole = 0
    """aggregation "constant": tokens that a sum is divided by, such as rollout.sampling.max_new_tokens."""
    old_policy: Literal["behaviour", "proximal"] = "behaviour"
    """What the ratio compares with: the policy that sampled the token, or the one that the step starts from, which
    leaves the difference of the two to trainer.correction (decoupled PPO)."""
    entropy_coef: Amount = 0.0
    """Nats of entropy count this much against the loss."""
    entropy_metric: bool = True
    """Measure the entropy of the policy though no bonus asks for it."""


class KlSettings(Settings):
    """The divergence of the policy from a frozen reference."""

    estimator: Literal["k1", "k2", "k3", "low_var"] | None = None
    """How it is estimated from sampled tokens; when left out k1 in the reward and k3 elsewhere."""
    reward_coef: Amount = 0.0
    """Reward that a nat of it costs, at its token; for reinforce_plus_plus, its baseline variant and ppo."""
    loss_coef: Amount = 0.0
    """Loss that a nat of it costs."""
    unbiased: bool = False
    """In the loss, weigh it by the probability ratio, which makes its gradient right for tokens of an older policy."""
    measure: bool = False
    """Report it though no coefficient asks for it."""
    reference: str = ""
    """Folder of the reference's Hugging Face checkpoint; empty for the run's initial model."""
    refresh_every: Whole = 0
    """Steps after which the reference becomes the current policy; 0 never."""


class CorrectionSettings(Settings):
    """For tokens that the step's policy would have sampled with another probability."""

    type: Literal["none", "tis", "icepop", "mis"] = "none"
    """Weigh by the probability ratio of the step's policy to the one that sampled: truncated; 0 outside of the bounds;
    or as level and mode say. Needs trainer.loss.old_policy = "proximal"."""
    low: Amount | None = None
    """Lower bound of the weight; when left out 0 for tis, 0.5 for icepop and mis."""
    high: Rate | None = None
    """Upper bound of the weight; when left out 2 for tis and mis, 5 for icepop."""
    level: Literal["token", "sequence", "geometric"] = "token"
    """mis: the ratio of a token, of its whole sample, or the sample's geometric mean."""
    mode: Literal["truncate", "clip", "mask"] = "truncate"
    """mis: keep the weight below the upper bound, within both, or make it 0 outside of them."""
    rejection: Literal["none", "token", "sequence", "geometric"] = "none"
    """mis: leave out what has a ratio outside of the rejection bounds at this level."""
    rejection_low: Amount | None = None
    """Lower bound of ratios that are not rejected; when left out that of the weight."""
    rejection_high: Rate | None = None
    """Upper bound of ratios that are not rejected; when left out that of the weight."""
    veto_threshold: Share = 0.0
    """mis: leave out a sample if one of its tokens has a ratio below this; 0 never."""
    normalize: bool = False
    """mis: divide the weights of a step by their mean."""
    opsm_delta: Amount = 0.0
    """Leave out samples of negative advantage that have become less probable by this many nats a token; 0 never."""
    max_token_staleness: Whole | None = None
    """Tokens of weight versions further back than this are context and are not trained; when left out all are."""

    @property
    def bounds(self) -> tuple[float, float]:
        """Of the weight, as given or as is usual for the type."""
        low, high = {"tis": (0.0, 2.0), "icepop": (0.5, 5.0)}.get(self.type, (0.5, 2.0))
        return low if self.low is None else self.low, high if self.high is None else self.high

    @property
    def rejection_bounds(self) -> tuple[float, float]:
        """Of ratios that are not rejected."""
        low, high = self.bounds
        given = self.rejection_low, self.rejection_high
        return low if given[0] is None else given[0], high if given[1] is None else given[1]


class CriticSettings(Settings):
    """The value model of estimator ppo."""

    path: str = ""
    """Folder of a Hugging Face checkpoint to start from; empty for the run's initial model."""
    learning_rate: Rate = 1e-5
    """AdamW's step size; schedule and warm-up are the policy's."""
    warmup_steps: Whole = 0
    """First steps of the run, in which only the critic is trained."""
    value_clip: Amount = 0.2
    """How far a value may move in one step before its error counts no more; 0 for as far as it likes."""


class DistillationSettings(Settings):
    """On-policy distillation: a teacher judges each token that the policy sampled."""

    teacher: str = ""
    """Folder of the teacher's Hugging Face checkpoint, which the trainer loads; it has the policy's vocabulary. Empty
    for none."""
    url: str = ""
    """Address of an SGLang server of the teacher, in place of `teacher`: the reward service asks it about each attempt,
    and the answer stays with the attempt. Needs rollout.sampling.temperature = 1."""
    coef: Amount = 0.0
    """Advantage that a token loses for each nat that the teacher finds it less probable than the policy does."""
    batch_tokens: Count = 65_536
    """url: most tokens in one request, prompts included; a longer attempt goes alone."""
    deadline_s: Rate = 120.0
    """url: seconds for one request."""
    max_tries: Count = 5
    """url: tries of one request before it is halved, to find an attempt that is at fault."""


class DpoSettings(Settings):
    """The loss of runs of kind dpo."""

    type: Literal["dpo", "ipo"] = "dpo"
    """Logistic loss of the preference, or the squared distance to a fixed margin."""
    beta: Rate = 0.1
    """How much a nat of the log ratio to the reference counts; larger stays closer to it."""
    label_smoothing: Annotated[float, Field(ge=0, lt=0.5)] = 0.0
    """dpo: share of pairs whose order is taken to be wrong."""


class TrainerSettings(Settings):
    """From scored groups to new weights."""

    steps: Whole
    """Steps of the run; each trains rollout.groups_per_step groups and publishes one weight version. 0, in a run of
    kind rl, evaluates the initial model on eval.datasets and ends: what says how to train has no effect then."""
    backend: Literal["torch"] = "torch"
    """What holds the model."""
    updates_per_step: Count = 1
    """Optimizer updates that the groups of a step are divided into."""
    epochs: Count = 1
    """Times that a step goes through its groups."""
    learning_rate: Rate = 1e-6
    """AdamW's step size after the warm-up."""
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """After the warm-up: stay, or decay to learning_rate * min_learning_rate_ratio at the last step."""
    min_learning_rate_ratio: Share = 0.0
    """Where a decay ends, relative to learning_rate."""
    warmup_steps: Whole = 0
    """Steps in which the learning rate rises from 0."""
    adam_beta1: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """Decay of the first moment."""
    adam_beta2: Annotated[float, Field(ge=0, lt=1)] = 0.95
    """Decay of the second moment."""
    adam_epsilon: Rate = 1e-8
    """Added to the root of the second moment."""
    weight_decay: Amount = 0.0
    """Decoupled decay of matrices; vectors are not decayed."""
    max_grad_norm: Rate = 1.0
    """Gradients are scaled down to this global norm."""
    nan_policy: Literal["skip", "stop"] = "skip"
    """A gradient that is not finite: leave the update out and count it, or end the run."""
    check_first_step: bool = True
    """End the run if its first step, before any training, finds that trainer and engine disagree, or the policy and a
    reference that should be the same."""
    logprob_diff_alarm: Amount = 0.0
    """Mean nats between trainer and engine, over a step's tokens or over those of its own version, beyond which the run
    gets an event; 0 for none."""
    max_tokens_per_gpu: Count = 8192
    """Token budget of one packed forward pass; a longer sequence goes alone."""
    recompute: bool = False
    """Compute activations again in the backward pass instead of keeping them: less memory, a third more work."""
    offload_optimizer: bool = False
    """Keep the optimizer's state in the memory of the host."""
    offload_frozen: bool = False
    """Keep reference and teacher in the host's memory while they are not asked."""
    compile: bool = False
    """Compile each decoder layer; it takes a minute or more at the start and pays off on GPUs only."""
    threads: Count = 1
    """CPU threads of the trainer's tensor operations."""
    checkpoint_every: Count = 50
    """Steps between durable checkpoints; the last step is always saved."""
    export_every: Whole = 0
    """Steps between Hugging Face folders of the model, exports/step_N in the run's folder, that are written while the
    run goes on; 0 for none but `export` at the end. The next step waits for the files."""
    keep_checkpoints: Count = 2
    """Newest checkpoints that stay on disk."""
    archive: bool = False
    """Write trained groups to files before they leave Redis, so that any step can be replayed at any time."""
    advantage: AdvantageSettings = AdvantageSettings()
    loss: LossSettings = LossSettings()
    kl: KlSettings = KlSettings()
    correction: CorrectionSettings = CorrectionSettings()
    critic: CriticSettings = CriticSettings()
    distillation: DistillationSettings = DistillationSettings()
    dpo: DpoSettings = DpoSettings()
