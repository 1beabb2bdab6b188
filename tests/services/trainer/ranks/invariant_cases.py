"""Every loss, aggregation, correction and penalty -> the settings of a run whose steps must not depend on their cut."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from shared.run_settings import RunSettings
from shared.settings import Tree, merge

LOSSES = {"ppo_clip": {}, "gspo": {"clip_low": 0.05, "clip_high": 0.05}, "cispo": {"clip_low": 0.2, "clip_high": 0.2}}
AGGREGATIONS = {"token": {}, "rollout": {}, "constant": {"constant_length": 16}}
ABOVE_ROUNDING = 1e-5
"""AdamW's first step is the sign of a gradient, also of one that is nothing but rounding; unless epsilon is larger."""
DECOUPLED = {"loss": {"old_policy": "proximal"}, "updates_per_step": 2}


@dataclass(frozen=True, slots=True)
class Case:
    """Settings, and the metric that is above 0 only where they do something."""

    shows: str
    trainer: Tree
    kind: str = "rl"
    models: dict[str, str] = field(default_factory=dict[str, str])
    """A section of the trainer's settings and the name of its model -> which of the tiny models it is."""
    lora: Tree = field(default_factory=dict[str, Any])

    def settings(self, folders: dict[str, Path], max_tokens: int) -> RunSettings:
        """Of a run with that budget of a micro-batch."""
        tree: Tree = {
            "name": "r1",
            "kind": self.kind,
            "model": {"path": str(folders["policy"])},
            "data": {"datasets": [{"name": "data_0"}, {"name": "data_1"}]},
            "lora": self.lora,
            "rollout": {"groups_per_step": 6, **({"group_size": 6} if self.kind == "rl" else {})},
            "trainer": {
                "steps": 9,
                "learning_rate": 1e-3,
                "adam_epsilon": ABOVE_ROUNDING,
                "max_tokens_per_gpu": max_tokens,
            },
        }
        given: Tree = self.trainer
        for place, model in self.models.items():
            section, _, name = place.partition(".")
            given = merge(given, {section: {name: str(folders[model])}})
        return RunSettings.model_validate(merge(tree, {"trainer": given}))


def _corrected(**correction: Any) -> Tree:
    return merge(DECOUPLED, {"correction": correction})


REFERENCE = {"kl.reference": "reference"}
FROM_ZERO: Tree = {"adam_epsilon": 1e-3}
"""The gradient of A is a product with B, which is 0 at first: the sign of what is nothing but rounding comes back."""
ADAPTERS: Tree = {"rank": 3, "alpha": 6.0, "target_modules": ["q_proj", "v_proj", "down_proj"]}
CASES: dict[str, Case] = {
    **{
        f"{loss} by {aggregation}": Case(
            "clip_fraction", {"loss": {"type": loss, "aggregation": aggregation, **bounds, **length}}
        )
        for loss, bounds in LOSSES.items()
        for aggregation, length in AGGREGATIONS.items()
    },
    "ppo_clip with dual clip": Case("dual_clip_fraction", {"loss": {"dual_clip": 1.2, "aggregation": "token"}}),
    "gspo with dual clip": Case(
        "dual_clip_fraction", {"loss": {"type": "gspo", "dual_clip": 1.01, "clip_low": 0.05, "clip_high": 0.05}}
    ),
    "ppo_clip of Dr. GRPO": Case("clip_fraction", {"advantage": {"normalize_std": False}}),
    "decoupled, two updates of two epochs": Case("kl", merge(DECOUPLED, {"epochs": 2})),
    "decoupled with tis": Case("correction_clipped_fraction", _corrected(type="tis", high=1.1)),
    "decoupled with icepop": Case("rejected_fraction", _corrected(type="icepop", low=0.8, high=1.2)),
    "normalized tis": Case("correction_clipped_fraction", _corrected(type="mis", high=1.1, normalize=True)),
    "normalized mis by sequence": Case(
        "rejected_fraction", _corrected(type="mis", level="sequence", mode="mask", normalize=True)
    ),
    "normalized mis by geometric mean": Case(
        "rejected_fraction",
        _corrected(type="mis", level="geometric", mode="mask", low=0.9, high=1.1, normalize=True),
    ),
    "mis with rejection and veto": Case(
        "rejected_fraction",
        _corrected(type="mis", mode="clip", rejection="sequence", veto_threshold=0.5, max_token_staleness=2),
    ),
    "opsm": Case("opsm_fraction", _corrected(opsm_delta=0.02)),
    "kl in the loss": Case("kl_reference", {"kl": {"loss_coef": 0.3}}, models=REFERENCE),
    "unbiased kl in the loss": Case(
        "kl_reference", {"kl": {"loss_coef": 0.3, "estimator": "k1", "unbiased": True}}, models=REFERENCE
    ),
    "kl to a reference that follows": Case(
        "kl_reference", {"kl": {"loss_coef": 0.3, "estimator": "k2", "refresh_every": 1}}, models=REFERENCE
    ),
    "entropy bonus": Case("entropy", {"loss": {"entropy_coef": 0.1}}),
    "kl in the reward, whitened by step": Case(
        "kl_reference",
        {"advantage": {"estimator": "reinforce_plus_plus", "whiten": "step", "gamma": 0.9}, "kl": {"reward_coef": 0.1}},
        models=REFERENCE,
    ),
    "reinforce++ with baseline, whitened by dataset": Case(
        "clip_fraction", {"advantage": {"estimator": "reinforce_plus_plus_baseline", "whiten": "dataset"}}
    ),
    "rloo": Case("clip_fraction", {"advantage": {"estimator": "rloo"}}),
    "ppo with a critic": Case(
        "value_clip_fraction",
        {
            "advantage": {"estimator": "ppo", "gae_lambda": 0.9, "gamma": 0.95},
            "critic": {"learning_rate": 1e-3, "value_clip": 1e-3},
            "updates_per_step": 2,
            "loss": {"aggregation": "token"},
        },
        models={"critic.path": "critic"},
    ),
    "ppo, the critic first": Case(
        "critic_loss", {"advantage": {"estimator": "ppo"}, "critic": {"learning_rate": 1e-3, "warmup_steps": 1}}
    ),
    "distillation": Case(
        "teacher_kl", {"distillation": {"coef": 0.5}}, models={"distillation.teacher": "teacher"}
    ),
    "distillation from a server": Case("teacher_kl", {"distillation": {"coef": 0.5, "url": "http://127.0.0.1:9"}}),
    "distillation alone, whitened": Case(
        "teacher_kl",
        {"distillation": {"coef": 0.5}, "advantage": {"estimator": "reinforce_plus_plus", "whiten": "step"}},
        models={"distillation.teacher": "teacher"},
    ),
    "adapters, and kl to the model without them": Case(
        "kl_reference", merge(FROM_ZERO, {"kl": {"loss_coef": 0.3}, "updates_per_step": 2}), lora=ADAPTERS
    ),
    "adapters of policy and critic": Case(
        "critic_loss",
        merge(FROM_ZERO, {"advantage": {"estimator": "ppo"}, "critic": {"learning_rate": 1e-3}}),
        lora=ADAPTERS,
    ),
    "sft": Case("loss", {}, "sft"),
    "sft, two updates": Case("loss", {"updates_per_step": 2}, "sft"),
    "dpo": Case("loss", {"dpo": {"label_smoothing": 0.1}}, "dpo", REFERENCE),
    "ipo": Case("loss", {"dpo": {"type": "ipo"}}, "dpo", REFERENCE),
    "dpo of adapters": Case("loss", FROM_ZERO, "dpo", lora=ADAPTERS),
}  # fmt: skip
