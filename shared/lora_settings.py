"""How a run learns with adapters beside a model that stays as it is, as written in its TOML file."""

from typing import Annotated, Literal

from pydantic import Field

from shared.settings import Settings


class LoraSettings(Settings):
    """Low-rank adapters (LoRA): they learn, and the model's own weights stay as they are."""

    rank: Annotated[int, Field(ge=0)] = 0
    """Rank of each adapter; 0 has none, and the whole model learns."""
    alpha: Annotated[float, Field(gt=0)] = 32.0
    """What an adapter says is weighed by alpha / rank."""
    target_modules: list[str] = Field(
        default=["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    )
    """Linear layers of each decoder layer that get one, by the last part of their names."""
    publish: Literal["merged", "adapter"] = "merged"
    """What engines get of each version: the whole model with the adapters added to it, or the adapters alone, by files;
    then requests in flight end with their version, and nothing waits."""

    @property
    def is_served(self) -> bool:
        """Engines serve the adapters beside the model."""
        return self.rank > 0 and self.publish == "adapter"

    def goes_on_from(self, other: "LoraSettings") -> bool:
        """Whether these adapters are those of another run, trained further; how they are published may differ."""
        return (self.rank, other.rank) == (0, 0) or self == other.model_copy(update={"publish": self.publish})
