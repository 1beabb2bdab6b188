"""Settings of the loss and of the correction -> the functions that they name."""

from collections.abc import Iterator
from functools import partial

from services.trainer.corrections.combine import combine
from services.trainer.corrections.correction import CorrectionFunction
from services.trainer.corrections.icepop import icepop
from services.trainer.corrections.mis import mis
from services.trainer.corrections.opsm import opsm
from services.trainer.corrections.rejection import reject, veto
from services.trainer.corrections.staleness_mask import staleness_mask
from services.trainer.corrections.tis import tis
from services.trainer.losses.cispo import cispo
from services.trainer.losses.gspo import gspo
from services.trainer.losses.objective import Objective
from services.trainer.losses.policy_loss import PolicyLoss
from services.trainer.losses.ppo_clip import ppo_clip
from services.trainer.losses.token_loss import LossFunction
from services.trainer.own_functions import own_loss
from shared.trainer_settings import CorrectionSettings, LossSettings, TrainerSettings


def is_own(loss: LossSettings) -> bool:
    """Whether the loss is a user's `module:function`."""
    return ":" in loss.type


def choose_loss(trainer: TrainerSettings) -> LossFunction:
    """The policy's loss; PluginError if a user's does not load."""
    if is_own(trainer.loss):
        return own_loss(trainer.loss.type)
    normalized = trainer.correction.normalize
    return PolicyLoss(
        objective=_objective(trainer.loss),
        old_policy=trainer.loss.old_policy,
        correction=None if normalized else choose_correction(trainer.correction),
        mask=partial(opsm, delta=trainer.correction.opsm_delta) if trainer.correction.opsm_delta else None,
        kl_estimator=trainer.kl.estimator or "k3",
        kl_coef=trainer.kl.loss_coef,
        is_kl_unbiased=trainer.kl.unbiased,
        entropy_coef=trainer.loss.entropy_coef,
    )


def choose_correction(correction: CorrectionSettings) -> CorrectionFunction | None:
    """All that the settings ask for but opsm, which follows the policy, multiplied; None if they ask for nothing."""
    parts = list(_parts(correction))
    return combine(parts) if parts else None


def _objective(loss: LossSettings) -> Objective:
    """The bounds that are left out are those of the papers; see each function."""
    low, high, dual = loss.clip_low, loss.clip_high, loss.dual_clip
    match loss.type:
        case "ppo_clip":
            return partial(ppo_clip, clip_low=low or 0.2, clip_high=high or 0.2, dual_clip=dual)
        case "gspo":
            return partial(gspo, clip_low=low or 3e-4, clip_high=high or 4e-4, dual_clip=dual)
        case "cispo":
            return partial(cispo, clip_low=low, clip_high=high or 4.0)
        case unknown:
            raise AssertionError(f"settings with loss type {unknown!r} are refused before")


def _parts(correction: CorrectionSettings) -> Iterator[CorrectionFunction]:
    bounds = correction.bounds
    match correction.type:
        case "tis":
            yield partial(tis, bounds=bounds)
        case "icepop":
            yield partial(icepop, bounds=bounds)
        case "mis":
            yield partial(mis, level=correction.level, mode=correction.mode, bounds=bounds)
        case "none":
            pass
    if correction.rejection != "none":
        yield partial(reject, level=correction.rejection, bounds=correction.rejection_bounds)
    if correction.veto_threshold:
        yield partial(veto, threshold=correction.veto_threshold)
    if correction.max_token_staleness is not None:
        yield partial(staleness_mask, most=correction.max_token_staleness)
