"""docs/configuration.md is what the settings models say."""

from shared.deployment import Deployment
from shared.run_settings import RunSettings
from sluice.settings_page import PAGE, settings_page


def test_the_page_is_up_to_date() -> None:
    assert PAGE.read_text("utf-8") == settings_page(), "run `python -m sluice.settings_page`"


def test_every_setting_is_on_the_page() -> None:
    page = settings_page()
    for model in (Deployment, RunSettings):
        for section, field in model.model_fields.items():
            names = getattr(field.annotation, "model_fields", {section: field})
            assert all(f"| `{name}` |" in page or f".{name}]`" in page for name in names)


def test_limits_defaults_and_meanings_are_shown() -> None:
    page = settings_page()
    assert '| `device` | `"auto"` | `"auto"` or `"cpu"` or `"cuda"` | auto takes cuda where a GPU is there. |' in page
    assert "| `path` | required | text | Folder of a Hugging Face checkpoint" in page
    assert "| `port` | `8300` | integer, > 0, < 65536 |" in page
    assert "| `dual_clip` | left out | number, > 1 | ppo_clip and gspo:" in page
