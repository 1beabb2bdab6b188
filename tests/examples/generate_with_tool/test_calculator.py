"""The calculator example: it loads as a plugin, and its results reach the model but not the loss."""

import pytest

from examples.generate_with_tool.calculator import calculate
from services.rollout.generate_group import GroupGenerator, load_generate
from services.rollout.model_tokenizer import ModelTokenizer
from services.rollout.router_connections import RouterConnections
from services.rollout.sampler import Sampler
from services.trainer.tiny_model import byte_tokenizer
from shared.logs import Log
from shared.messages import Prompt, expand
from tests.services.rollout.fake_router import FakeRouter, item


@pytest.mark.parametrize(
    ("expression", "value"),
    [("12*7", "84"), (" 2-3*4 ", "-10"), ("-(1+1)/4", "-0.5"), ("1/0", "error"), ("2**9**9", "error")],
)
def test_arithmetic_is_calculated(expression, value):
    assert calculate(expression) == value


@pytest.mark.parametrize("expression", ["__import__('os')", "a", "", "1+" * 80 + "1", "'a'*3", "(" * 60])
def test_anything_else_is_an_error(expression):
    assert calculate(expression) == "error"


async def test_a_result_is_shown_to_the_model_and_not_trained():
    tokenizer = ModelTokenizer(byte_tokenizer())

    async def respond(body):
        asked = tokenizer.decode(body["input_ids"])
        text = "so 84" if asked.endswith("<result>84</result>") else "<calc>12*7</calc>"
        return 200, item(tokenizer.encode(text), "stop")

    prompt = Prompt(0, "train", "sums", 0, "12*7=", 2)
    async with FakeRouter(respond).serving() as router, RouterConnections(router.url, 10) as client:
        generate = load_generate("examples.generate_with_tool.calculator:generate")
        rollouts = await GroupGenerator(tokenizer, Sampler(client, Log("test")), generate, "w").generate(prompt)
    for rollout in rollouts:
        added = [token for token, mask in zip(rollout.token_ids, expand(rollout.loss_mask), strict=True) if not mask]
        assert tokenizer.decode(added) == "<result>84</result>"
        assert rollout.text == "so 84"
